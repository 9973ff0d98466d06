"""What a task looks like to a model, and what looks wrong with it; loads no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nslora.tools.prompt import control_tokens
from nslora.tools.prompt_variables import QUESTION_NAME, variables
from nslora.tools.schema import Example, Message
from nslora.tools.tasks.near_duplicates import across
from nslora.tools.tasks.spec import SPLITS
from nslora.tools.tasks.splits import same_question
from nslora.tools.tasks.task import Task

SHOWN_ROWS = 3
_FINAL = re.compile(r"####|\\boxed\{")
_CHECKED_REPLIES = 200  # replies that a costly reward judges, at most
_CHARACTERS_PER_TOKEN = 3.5  # English; less in other scripts
_LONG_SHARE = 0.05  # of references that do not fit into a reply
_FORMATS = ("messages", "conversations", "chosen", "rejected")  # columns that known formats read or leave out
_LISTED = 5  # rows in a message


@dataclass(frozen=True)
class ShownRow:
    """A train row as the model will see it, with the reward of its own reference.

    Attributes:
        id: Of the row.
        messages: The chat turns of the start prompt.
        reference: The first right answer; None if the row has none.
        answers: All right answers, if there are several.
        reward: Of the reference as a reply, in [0, 1]; None without a reference.
        feedback: What the reward says of it; "" at full reward.
    """

    id: str
    messages: list[Message]
    reference: str | None
    answers: tuple[str, ...]
    reward: float | None
    feedback: str


@dataclass(frozen=True)
class TaskCheck:
    """The findings.

    Attributes:
        sizes: Split name -> rows.
        rows: The first train rows.
        full: Split name -> (references that earn full reward, references that were judged).
        wrong: What must be mended, one sentence each.
        notes: What was decided on loading, and advice.
    """

    sizes: dict[str, int]
    rows: tuple[ShownRow, ...]
    full: dict[str, tuple[int, int]]
    wrong: tuple[str, ...]
    notes: tuple[str, ...]


def check_task(
    task: Task, on_progress: Callable[[int, int], None] = lambda done, total: None, *, ask_judges: bool = False
) -> TaskCheck:
    """Judge each reference by the task's own reward, and look for what makes a run fail or mislead.

    A reference may miss the form that the reward asks for: such a task teaches form by its prompt. So it is wrong only
    if neither the reference nor its repair by the checks earns full reward.

    Args:
        task: The task. A costly reward judges a part of the references.
        on_progress: Is called with (references judged, references to judge).
        ask_judges: Whether a judge may be asked, which costs money. Else a task with one that has not judged all of
            its references yet is shown without rewards, with the number of calls that they would take.

    Raises:
        RewardError: If a function of the reward fails.
    """
    limit = _CHECKED_REPLIES if task.reward.costly else None
    judged = {split: [row for row in getattr(task, split) if row.reference][:limit] for split in SPLITS}
    calls, said = _judges(task, [row for rows in judged.values() for row in rows], ask=ask_judges)
    asked = ask_judges or not calls
    total, done = sum(map(len, judged.values())), 0
    full: dict[str, tuple[int, int]] = {}
    unreachable: list[Example] = []
    missed: list[Example] = []
    for split, rows in judged.items() if asked else ():
        passed = 0
        for row in rows:
            score = task.reward(row, row.reference or "")
            passed += score.passed
            if not score.passed:
                may_be_repaired = not task.reward.reveals or task.reward.suggestion(row) is not None
                (missed if may_be_repaired else unreachable).append(row)
            done += 1
            on_progress(done, total)
        full[split] = passed, len(rows)
    sizes = {split: len(getattr(task, split)) for split in SPLITS}
    anything = _answers_to_anything(task) if asked else []
    wrong = (*_unreachable(task, unreachable), *anything, *_contradictions(task))
    of_rows = (note for each in (_near, _unasked, _marked, _solutions, _too_long) for note in each(task))
    advice = (*_missed(missed, total), *of_rows)
    shown = tuple(_shown(task, row, asked=asked) for row in task.train[:SHOWN_ROWS])
    return TaskCheck(sizes, shown, full, wrong, (*task.notes, *said, *advice))


def _judges(task: Task, rows: Sequence[Example], *, ask: bool) -> tuple[int, list[str]]:
    """Calls that the task's judges would make in this check, and what is to be said of each judge."""
    first = task.train[0]
    pairs = [*((row, row.reference or "") for row in rows), (first, ""), (first, first.question)]
    total, notes = 0, []
    for check in task.reward.judges:
        labelled = check.labelled_pairs()
        unknown = check.unknown([*pairs, *labelled])
        total += unknown
        if unknown and not ask:
            most = f" (up to {unknown * check.most_calls} with all samples)" if check.most_calls > 1 else ""
            notes.append(
                f"The judge {check.judge} has not judged {len(rows)} references and {len(labelled)} labelled rows yet: "
                f"that takes {unknown} calls{most}, which nslora check --ask-judges makes."
            )
        elif (agreement := check.agreement()) is not None:
            notes.append(f"The judge {check.judge} against labelled rows: {agreement}.")
    return total, notes


def _near(task: Task) -> list[str]:
    """Questions of different splits that are nearly alike, unless that was said on loading."""
    near = across({split: [same_question(row.asked) for row in getattr(task, split)] for split in SPLITS})
    return [note for note in near if note not in task.notes]


def _shown(task: Task, row: Example, *, asked: bool) -> ShownRow:
    score = task.reward(row, row.reference) if row.reference and asked else None
    told = (score.value, score.feedback) if score else (None, "")
    return ShownRow(row.id, task.prompt.dialogue(row), row.reference or None, row.answers, *told)


def _unreachable(task: Task, rows: Sequence[Example]) -> list[str]:
    """References that earn no full reward, not even repaired by the checks."""
    if not rows:
        return []
    score = task.reward(rows[0], rows[0].reference or "")
    failed = ", ".join(name for name, value in score.checks.items() if value < 1)
    return [
        f"{len(rows)} references do not earn full reward under the task's own checks, nor does their repair "
        f"({_ids(rows)}; the checks that fail on the first: {failed}): mend the references or the checks, or give a "
        "regex check its `form`."
    ]


def _missed(rows: Sequence[Example], total: int) -> list[str]:
    if not rows:
        return []
    return [
        f"{len(rows)} of {total} references earn full reward only in another form: the prompt or remade rows must "
        "teach it."
    ]


def _answers_to_anything(task: Task) -> list[str]:
    """A reward that pays for nothing: the empty reply, or the question itself."""
    row = task.train[0]
    found = []
    for reply, words in (("", "An empty reply"), (row.question, "The question as a reply")):
        if task.reward(row, reply).passed and reply.strip() != (row.reference or "").strip():
            found.append(f"{words} earns full reward on {row.id}: add a check that tells right replies from others.")
    return found


def _contradictions(task: Task) -> list[str]:
    """Questions that train asks more than once, with different answers."""
    answers: dict[str, set[tuple[str, ...]]] = {}
    for row in task.train:
        if row.reference:
            answers.setdefault(same_question(row.asked), set()).add(row.answers or (row.reference,))
    several = [
        question for question, found in answers.items() if len(found) > 1 and not set.intersection(*map(set, found))
    ]
    if not several:
        return []
    return [
        f"{len(several)} train questions have different references in different rows (first {several[0][:60]!r}): "
        "ask what tells the rows apart, or make each question one row with all answers by `duplicates: merge`."
    ]


def _unasked(task: Task) -> list[str]:
    """Columns of text that differ from row to row and reach neither the model nor the reward."""
    fields = task.reader.fields
    known = {fields.question, fields.reference, "id", fields.id, "question", "reference", *_FORMATS}
    known |= {getattr(check, "field", None) for check in task.reward.checks}
    known |= {each.name for each in variables(task.reader.question_template or "", task.columns)}
    rows = task.train[:_CHECKED_REPLIES]
    unused = []
    for name in task.columns:
        texts = [value for row in rows if isinstance(value := row.fields.get(name), str) and value.strip()]
        learnt = [value for row in rows for value in (row.target, row.reference, *row.answers)]
        asked = set(texts) <= set(learnt) or all(text in row.asked for row, text in zip(rows, texts, strict=False))
        if name not in known and not asked and len(set(texts)) > 1:
            unused.append(name)
    if not unused or QUESTION_NAME in unused:
        return []
    return [
        f"The model does not see the columns {', '.join(unused[:_LISTED])}: put one into the question template, as in "
        f"{{{unused[0]}}}, if the answer depends on it."
    ]


def _marked(task: Task) -> list[str]:
    """Rows that hold marks of a chat template, as of data that was rendered for another model."""
    rows = [row for split in SPLITS for row in getattr(task, split)]
    held = {row.id: marks for row in rows if (marks := control_tokens(f"{row.asked}\n{row.reference or ''}"))}
    if not held:
        return []
    listed = ", ".join(sorted(set().union(*held.values()))[:_LISTED])
    return [
        f"{len(held)} rows hold marks of a chat template ({listed}; first {next(iter(held))}), which may end a turn "
        "for the model: remove them, or give the turns as `messages`."
    ]


def _solutions(task: Task) -> list[str]:
    """Advise another check if most references are solutions of which exact_match wants every word."""
    marked = sum(bool(_FINAL.search(row.reference or "")) for row in task.train)
    if 2 * marked <= len(task.train) or all(check.name != "exact_match" for check in task.reward.checks):
        return []
    return [
        f"{marked} of {len(task.train)} train references are solutions that end with an answer (#### or \\boxed), and "
        "exact_match wants the whole text: `reward: [numeric]` judges the answer alone."
    ]


def _too_long(task: Task) -> list[str]:
    lengths = [len(row.reference) / _CHARACTERS_PER_TOKEN for row in task.train if row.reference]
    long = sum(length > task.max_new_tokens for length in lengths)
    if long <= _LONG_SHARE * len(lengths):
        return []
    return [
        f"{long} of {len(lengths)} train references are longer than a reply may be (max_new_tokens: "
        f"{task.max_new_tokens}), the longest about {max(lengths):.0f} tokens."
    ]


def _ids(rows: Sequence[Example]) -> str:
    more = ", ..." if len(rows) > _LISTED else ""
    return ", ".join(row.id for row in rows[:_LISTED]) + more
