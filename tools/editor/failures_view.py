"""What an editor is shown of the failures: few, varied, clipped, and with no tag that could open or close another."""

from __future__ import annotations

from collections.abc import Sequence

from nslora.tools.editor.textual_gradients import neutralise
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.reward import SUGGESTION_PREFIX
from nslora.tools.rewards.score import Graded

MAX_FAILURES = 4  # every one repeats its conversation in the optimizer's prompt: about 2k tokens each
QUESTION_CHARACTERS, REPLY_CHARACTERS, FEEDBACK_CHARACTERS, SUGGESTION_CHARACTERS = 2000, 800, 1200, 2000
CRITIQUE_CHARACTERS = 6000  # holds a question and a suggestion at their longest
CLIPPED = " [...] "
QUOTED_CHARACTERS = 160  # of a text in the summary of an edit


def choose_failures(failures: Sequence[Graded], most: int = MAX_FAILURES) -> list[Graded]:
    """The first failure, then those that say something new: other feedback before other replies before the order."""
    left = list(failures)
    chosen: list[Graded] = []
    while left and len(chosen) < most:
        said = {_general_feedback(known) for known in chosen}
        replied = {known.reply for known in chosen}
        best = min(left, key=lambda f: (_general_feedback(f) in said, f.reply in replied))
        left.remove(best)
        chosen.append(best)
    return chosen


def failure_texts(failure: Graded) -> tuple[str, str, str]:
    """Question, reply and feedback as the editor sees them: clipped, valid UTF-8, without a live tag.

    A suggestion is shown whole or not at all: half a right reply is a wrong one.
    """
    score = failure.score
    feedback, _, suggestion = score.feedback.partition(SUGGESTION_PREFIX.strip())
    suggestion = suggestion.strip() or (score.suggestion or "")
    told = clip(feedback.strip(), FEEDBACK_CHARACTERS) or f"The reply earned {score.value:.2f} of 1."
    if suggestion and len(suggestion) <= SUGGESTION_CHARACTERS:
        told += f"\n{SUGGESTION_PREFIX}{suggestion}"
    question = clip(failure.example.question, QUESTION_CHARACTERS)
    reply = clip(failure.reply, REPLY_CHARACTERS) or "(an empty reply)"
    return neutralise(question), neutralise(reply), neutralise(valid(told))


def describe_edit(old: Prompt, new: Prompt) -> str:
    """What an edit changed, on one line: the summary by which later edits remember it."""
    said = []
    if new.system != old.system:
        said.append(f"The system turn became {_quoted(new.system)}.")
    if new.template != old.template:
        said.append(f"The question template became {_quoted(new.template)}.")
    if new.demonstrations != old.demonstrations:
        added = [_quoted(each.question) for each in new.demonstrations if each not in old.demonstrations]
        removed = [_quoted(each.question) for each in old.demonstrations if each not in new.demonstrations]
        changes = [f"{word} {', '.join(texts)}" for word, texts in (("added", added), ("removed", removed)) if texts]
        said.append(f"{len(new.demonstrations)} demonstrations ({'; '.join(changes) or 'in another order'}).")
    return " ".join(said) or "Nothing was changed."


def _quoted(text: str) -> str:
    return f'"{clip(" ".join(text.split()), QUOTED_CHARACTERS)}"'


def _general_feedback(failure: Graded) -> str:
    return failure.score.feedback.partition(SUGGESTION_PREFIX.strip())[0].strip()


def clip(text: str, characters: int) -> str:
    """The text with its middle left out where it is longer, and without unpaired surrogates."""
    if len(text) > characters:
        half = (characters - len(CLIPPED)) // 2
        text = text[:half] + CLIPPED + text[-half:]
    return valid(text)


def valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


PAST_PREFIX = "Earlier edit:"


ALTERNATIVE_PREFIX = "This is alternative"
