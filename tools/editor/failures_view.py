"""What an editor is shown of the failures: a few different ones, shortened, with TextGrad's tags neutralised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nslora.tools.editor.textual_gradients import ShownFailure, neutralise
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.reward import SUGGESTION_PREFIX
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Kind

MAX_FAILURES = 4  # each repeats its conversation in the optimizer's request: about 2k tokens
QUESTION_CHARACTERS, REPLY_CHARACTERS, FEEDBACK_CHARACTERS, SUGGESTION_CHARACTERS = 2000, 800, 1200, 2000
CRITIQUE_CHARACTERS = 6000  # enough for a question and a suggestion of the greatest length
CLIPPED = " [...] "
QUOTED_CHARACTERS = 160  # of a text in the summary of an edit
# How two kinds of constraint begin; the rule editor looks for them.
PAST_PREFIX, ALTERNATIVE_PREFIX = "Earlier edit:", "This is alternative"


@dataclass(frozen=True)
class PastEdit:
    """An earlier update: an edit with its summary, or a training job.

    gain: in mean validation reward; checks: gain of each check.
    """

    summary: str
    gain: float
    kept: bool
    kind: Kind = "textgrad"
    round: int = 0
    checks: Mapping[str, float] = field(default_factory=dict)


def choose_failures(failures: Sequence[Graded], most: int = MAX_FAILURES) -> list[Graded]:
    """Choose up to `most` failures: the first, then those with new feedback, then new replies, then in order."""
    left = list(failures)
    chosen: list[Graded] = []
    while left and len(chosen) < most:
        seen = {_general_feedback(known) for known in chosen}
        replies = {known.reply for known in chosen}
        best = min(left, key=lambda f: (_general_feedback(f) in seen, f.reply in replies))
        left.remove(best)
        chosen.append(best)
    return chosen


def failure_texts(failure: Graded) -> ShownFailure:
    """Shorten and neutralise a failure; the texts are valid UTF-8.

    A suggested reply is shown whole or not at all, because half of a right reply is a wrong one.
    """
    suggestion = right_reply_of(failure)
    shown = clip(feedback_of(failure), FEEDBACK_CHARACTERS)
    if suggestion and len(suggestion) <= SUGGESTION_CHARACTERS:
        shown += f"\n{SUGGESTION_PREFIX}{suggestion}"
    question = clip(failure.example.asked, QUESTION_CHARACTERS)
    reply = clip(failure.reply, REPLY_CHARACTERS) or "(an empty reply)"
    if (done := failure.example.trajectory) is not None:
        reply = f"What the agent did:\n{done.told()}\nFinal answer: {reply}"
    return ShownFailure(neutralise(question), neutralise(reply), neutralise(_valid(shown)))


def right_reply_of(graded: Graded) -> str | None:
    """A reply that would earn full reward on the row; None if none is known."""
    score = graded.score
    return score.feedback.partition(SUGGESTION_PREFIX.strip())[2].strip() or score.suggestion or None


def feedback_of(failure: Graded) -> str:
    """The reward's words without the suggested reply, which differs from row to row."""
    return _general_feedback(failure) or f"The reply earned {failure.score.value:.2f} of 1."


def describe_edit(old: Prompt, new: Prompt) -> str:
    """Summarise on one line what an edit changed; later edits are shown this summary."""
    changed = []
    if new.system != old.system:
        changed.append(f"The system turn became {_quoted(new.system)}.")
    if new.template != old.template:
        changed.append(f"The question template became {_quoted(new.template)}.")
    for section in new.sections:
        if section not in old.sections:
            changed.append(f"The section {section.name} became {_quoted(section.text)}.")
    if new.demonstrations != old.demonstrations:
        added = [_quoted(each.question) for each in new.demonstrations if each not in old.demonstrations]
        removed = [_quoted(each.question) for each in old.demonstrations if each not in new.demonstrations]
        changes = [f"{word} {', '.join(texts)}" for word, texts in (("added", added), ("removed", removed)) if texts]
        changed.append(f"{len(new.demonstrations)} demonstrations ({'; '.join(changes) or 'in another order'}).")
    return " ".join(changed) or "Nothing was changed."


def _quoted(text: str) -> str:
    return f'"{clip(" ".join(text.split()), QUOTED_CHARACTERS)}"'


def _general_feedback(failure: Graded) -> str:
    """The feedback without the suggested reply, which differs from row to row."""
    return failure.score.feedback.partition(SUGGESTION_PREFIX.strip())[0].strip()


def clip(text: str, characters: int) -> str:
    """Cut the middle out of a text that is longer than `characters`, and replace unpaired surrogates by `?`."""
    if len(text) > characters:
        half = (characters - len(CLIPPED)) // 2
        text = text[:half] + CLIPPED + text[-half:]
    return _valid(text)


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
