"""What an editor is told in one request, within a limit of tokens: a pure function of plain values.

All texts and lists of values come from train rows. Of validation, there are counts and means alone.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nslora.tools.editor.failures_view import PastEdit, clip, feedback_of, right_reply_of
from nslora.tools.editor.textual_gradients import neutralise
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.checks import ROW_PREFIX
from nslora.tools.rewards.score import Graded

# Tokenizers of today make a token of 4 bytes of English, and of 3 bytes of JSON, code or Chinese.
BYTES_PER_TOKEN = 3.5
INPUT_TOKENS, LEAST_TOKENS = 2000, 1000  # of a request; at least so many beside the document and its rules
ROWS_FOR_SMALL = 12  # failures; on two cores each row costs llama.cpp four seconds
MOST_ROWS, MOST_PASSING, MOST_PAST, MOST_REPLIES, MOST_VALUES = 20, 4, 8, 3, 20
QUESTION, REPLY, VALUE, GOAL, SUMMARY = 400, 200, 80, 800, 400  # most characters of each that are shown


@dataclass(frozen=True)
class Means:
    """How the prompt in force did on a split. checks: mean value of each."""

    rows: int
    failing: int
    reward: float
    checks: Mapping[str, float]

    def words(self, split: str) -> str:
        """One clause for the editor."""
        checks = "".join(f"; {neutralise(name)} {value:.2f}" for name, value in self.checks.items())
        return f"{self.failing} of {self.rows} {split} rows fail (mean reward {self.reward:.2f}{checks})"


@dataclass(frozen=True)
class Situation:
    """What a run knows beside the failures. All texts are of train rows.

    Attributes:
        goal: What the replies are for, in the user's words.
        policy: Name and size of the model that the prompt is for.
        max_reply_tokens: Longest reply of that model.
        columns: Columns of the rows.
        prompt_tokens: Tokens that the prompt in force adds to a row.
        references: Of all train rows.
        passing: Rows with full reward.
        replies: To all rows that were asked.
        truncated: Number of replies that the length limit ended.
        verdicts: Number of failures by what they lack, as the classifier found: content, form, both.
        train: Of the rows that were asked; validation: of that split.
    """

    goal: str = ""
    policy: str = ""
    max_reply_tokens: int | None = None
    columns: Sequence[str] = ()
    prompt_tokens: int | None = None
    references: Sequence[str] = ()
    passing: Sequence[Graded] = ()
    replies: Sequence[str] = ()
    truncated: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    train: Means | None = None
    validation: Means | None = None


class Row(NamedTuple):
    """A row that an editor may name by its number, and the demonstration that it then becomes.

    id: "" for a demonstration of the document in force. right: None if no right reply is known.
    """

    id: str
    question: str
    right: str | None


@dataclass(frozen=True)
class Briefing:
    """The context of a request.

    Attributes:
        context: The text.
        rows: Row number n is `rows[n - 1]`.
        failures: Those that are shown, in order.
        answers: The closed list of right answers, the commonest first, if it is shown.
    """

    context: str
    rows: tuple[Row, ...]
    failures: tuple[Graded, ...]
    answers: tuple[str, ...] = ()


def tokens_of_text(text: str) -> int:
    """Estimate the tokens of a text, since an editor's tokenizer is rarely at hand."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


def varied(failures: Sequence[Graded], most: int) -> list[Graded]:
    """Choose rows with different references, then with different replies; of equals, the first in order."""
    left, chosen = list(enumerate(failures)), list[Graded]()
    references, replies = Counter[str | None](), Counter[str]()
    while left and len(chosen) < most:
        best = min(left, key=lambda each: (references[each[1].example.reference], replies[each[1].reply], each[0]))
        left.remove(best)
        chosen.append(best[1])
        references[best[1].example.reference] += 1
        replies[best[1].reply] += 1
    return chosen


def brief(
    prompt: Prompt,
    failures: Sequence[Graded],
    situation: Situation,
    past: Sequence[PastEdit],
    *,
    room: int,
    most_rows: int = MOST_ROWS,
    small: bool = False,
) -> Briefing:
    """Write the context of a request for an edit.

    What is worth most is taken first, as long as it fits: the goal, the numbers and one failure in any case; then some
    failures, the list of right answers, the newest updates, the commonest replies, rows that pass, more of each.

    Args:
        prompt: The prompt in force.
        failures: Failing train rows, the most important first.
        situation: What else the run knows.
        past: Earlier updates, in their order.
        room: Tokens that the context may take, as `tokens_of_text` estimates them.
        most_rows: Failures to show, if they fit.
        small: Whether a small model reads it. What the classifier found, the document's price and the commonest
            replies are left out: Qwen2.5-Coder-1.5B copied them into the system turn.
    """
    lines = [*_numbers(situation, small=small), *_in_common(failures)]
    chosen = varied(failures, most_rows)
    passing = varied(situation.passing, MOST_PASSING)
    history = [_past_line(each) for each in past[-MOST_PAST:]]
    common = _commonest_words(chosen)
    left = room - tokens_of_text("\n".join([*lines, common])) - _TITLES
    taken: dict[str, list[int]] = {"failures": [], "passing": [], "values": [], "replies": [], "past": []}
    answers = _answers(situation.references)
    optional = {"values": _values(answers), "replies": "" if small else _commonest(situation.replies)}
    for kind, number in _by_worth(len(chosen), len(passing), len(history), optional):
        if kind == "failures":
            text = _row_text(chosen[number], _feedback(chosen[number], common))
        elif kind == "passing":
            text = _row_text(passing[number], None)
        else:
            text = history[number] if kind == "past" else optional[kind]
        cost = tokens_of_text(text) + _NUMBER
        if cost <= left or (kind == "failures" and not taken["failures"]):
            left -= cost
            taken[kind].append(number)
    lines += [optional[kind] for kind in ("replies", "values") if taken[kind]]
    if taken["past"]:
        lines += ["Earlier updates, the oldest first; build on what was kept, do not repeat what was dropped:"]
        lines += [history[number] for number in sorted(taken["past"])]
    failing = [chosen[number] for number in sorted(taken["failures"])]
    shown = [passing[number] for number in sorted(taken["passing"])]
    rows = [Row("", each.question, each.reply) for each in prompt.demonstrations]
    lines += ["<FEEDBACK>", *_rows_text(prompt.demonstrations, failing, shown, common), "</FEEDBACK>"]
    rows += [Row(each.example.id, each.example.asked, right_reply_of(each)) for each in failing]
    rows += [Row(each.example.id, each.example.asked, each.reply) for each in shown]
    return Briefing("\n".join(lines), tuple(rows), tuple(failing), tuple(answers) if taken["values"] else ())


_TITLES, _NUMBER = 70, 2  # tokens of the headings around rows and updates, and of a row's number
_OF_THIS_ROW = re.compile(rf"{re.escape(ROW_PREFIX)}the (.*?)(['\"]).*?\2\.(?=\s|$)", re.DOTALL)
_OWN_TEXT = r"The \1'...' (each row's own text, which stands in its right reply)."


def _by_worth(failing: int, passing: int, past: int, optional: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """What could be told, that which is worth most first. The newest of the past has the highest number."""
    newest = [("past", number) for number in reversed(range(past))]
    failures = [("failures", number) for number in range(failing)]
    passes = [("passing", number) for number in range(passing)]
    yield from failures[:6]
    yield from [("values", 0)] if optional["values"] else []
    yield from newest[:3]
    yield from [("replies", 0)] if optional["replies"] else []
    yield from passes[:2]
    yield from failures[6:12]
    yield from [*newest[3:], *passes[2:], *failures[12:]]


def _numbers(situation: Situation, *, small: bool) -> list[str]:
    """The lines that are told in any case, or in any case to a large model."""
    lines = []
    if situation.goal:
        lines.append(f"The goal, in the user's words: {_shown(situation.goal, GOAL)}")
    model = f"The language model is {neutralise(situation.policy)}." if situation.policy else ""
    if (most := situation.max_reply_tokens) is not None:
        model += f" Its reply may take {most} tokens at most"
        model += (
            f"; {situation.truncated} of {len(situation.replies)} replies were cut off there."
            if situation.truncated
            else "."
        )
    lines += [model.strip()] if model else []
    means = [each.words(split) for split in ("train", "validation") if (each := getattr(situation, split))]
    if means:
        lines.append(f"Under the present document {', and '.join(means)}.")
    if small:
        return lines
    if verdicts := ", ".join(f"{count} {name}" for name, count in situation.verdicts.items() if count):
        lines.append(
            f"What the failing train replies lack: {verdicts}. The document is for form: how a reply is written. "
            "Content, the facts, is left to the training of weights."
        )
    if situation.prompt_tokens is not None:
        lines.append(
            f"The present document adds {situation.prompt_tokens} tokens to each row that is trained on and to each "
            "reply that is served: whatever is added must be worth its tokens."
        )
    return lines


def _in_common(failures: Sequence[Graded]) -> list[str]:
    """How all right replies begin and end, if there are three different ones or more; else how long they are."""
    right = [reply for each in failures if (reply := right_reply_of(each))]
    if len(set(right)) < 3:
        return []
    begin = _same_letters(right)
    end = _same_letters([reply[len(begin) :][::-1] for reply in right])[::-1]
    ways = [
        f"{how} {_shown(text, VALUE)!r}" for how, text in (("begin with", begin), ("end with", end)) if text.strip()
    ]
    if ways:
        return [f"All right replies to the failing rows {' and '.join(ways)}."]
    lengths = [len(reply.split()) for reply in right]
    wrong = [len(each.reply.split()) for each in failures]
    if max(lengths) < min(wrong) or max(wrong) < min(lengths):
        return [f"The right replies have {_range(lengths)}, the wrong replies {_range(wrong)}."]
    return []


def _range(words: Sequence[int]) -> str:
    few, many = min(words), max(words)
    return f"{few} word{'s' * (few != 1)}" if few == many else f"{few} to {many} words"


def _same_letters(texts: Sequence[str]) -> str:
    """The longest beginning that all texts share."""
    return "".join(each[0] for each in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*texts, strict=False)))


def _commonest(replies: Sequence[str]) -> str:
    often = [(reply, count) for reply, count in Counter(replies).most_common(MOST_REPLIES) if count > 1]
    if not often:
        return ""
    told = "; ".join(f"{_shown(reply, VALUE) or '(an empty reply)'} ({count} times)" for reply, count in often)
    return f"The commonest of {len(replies)} replies now: {told}"


def _answers(references: Sequence[str]) -> dict[str, int]:
    """The closed list of answers, if there is one: few values, each on several rows. The commonest first."""
    counts = Counter(references)
    return {} if len(counts) > min(MOST_VALUES, len(references) // 2) else dict(counts.most_common())


def _values(answers: Mapping[str, int]) -> str:
    told = "; ".join(f"{_shown(value, VALUE)} ({count})" for value, count in answers.items())
    return f"All right answers of the train rows, with their number: {told}" if told else ""


def _past_line(edit: PastEdit) -> str:
    what = "LoRA training of the weights." if edit.kind == "lora" else f"edit: {_shown(edit.summary, SUMMARY)}"
    checks = "".join(f", {neutralise(name)} {gain:+.2f}" for name, gain in edit.checks.items())
    number = f"round {edit.round}, " if edit.round else ""
    return f"- {number}{what} Validation reward {edit.gain:+.3f}{checks}; {'kept' if edit.kept else 'dropped'}."


def _row_text(graded: Graded, feedback: str | None) -> str:
    """A row as the editor sees it, without its number.

    feedback: The reward's words, "" if they stand above all rows; None for a row that passes.
    """
    question, reply = (_shown(text, most) for text, most in ((graded.example.asked, QUESTION), (graded.reply, REPLY)))
    if feedback is None:
        return f"Question: {question}\nReply: {reply}"
    right = right_reply_of(graded)
    lines = [f"Question: {question}"]
    if (done := graded.example.trajectory) is not None:
        lines += [f"What the agent did: {neutralise(done.told())}"]
    lines += [f"Wrong reply: {reply or '(an empty reply)'}"]
    lines += [] if right is None else [f"Right reply: {_shown(right, REPLY)}"]
    lines += [f"The reward says: {_shown(feedback, QUESTION)}"] if feedback else []
    return "\n".join(lines)


def _words(failure: Graded) -> str:
    """The reward's words, without this row's own text, which stands under the right reply already."""
    words = feedback_of(failure)
    return words if right_reply_of(failure) is None else _OF_THIS_ROW.sub(_OWN_TEXT, words)


def _commonest_words(failures: Sequence[Graded]) -> str:
    """The reward's words of most failures; "" if none are said twice."""
    ((words, count),) = Counter(_words(each) for each in failures).most_common(1)
    return words if count > 1 else ""


def _feedback(failure: Graded, common: str) -> str:
    return "" if (words := _words(failure)) == common else words


def _rows_text(
    demonstrations: Sequence[Demonstration], failing: Sequence[Graded], passing: Sequence[Graded], common: str
) -> Iterable[str]:
    """All rows, numbered from 1 over all three kinds. The reward's words of most rows stand above them."""
    count = len(demonstrations)
    if count:
        numbers = "Row 1 is" if count == 1 else f"Rows 1 to {count} are"
        yield f"{numbers} the document's demonstration{'s' if count > 1 else ''}, in that order."
    if common:
        yield f"The reward says of each failing row, if nothing else stands there: {_shown(common, QUESTION)}"
    yield "Rows that fail now:"
    for number, each in enumerate(failing, count + 1):
        yield f"[{number}] {_row_text(each, _feedback(each, common))}"
    if passing:
        yield "Rows that pass now, and must go on passing:"
    for number, each in enumerate(passing, count + len(failing) + 1):
        yield f"[{number}] {_row_text(each, None)}"


def _shown(text: str, most: int) -> str:
    return neutralise(clip(text.strip(), most))
