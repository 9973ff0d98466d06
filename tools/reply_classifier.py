"""The classifier alone: anyone's log of failing replies, judged by a task's reward. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nslora.tools.attribution import DEFAULTS as CLASSIFIER_DEFAULTS
from nslora.tools.attribution import Attribution, AttributionSettings, Demand, VerdictName, demand
from nslora.tools.classifier import classify, tolerance_of
from nslora.tools.errors import TaskError
from nslora.tools.rewards import Graded, Reward
from nslora.tools.task import Example, Task, load_task, same_question
from nslora.tools.task_files import Row, from_python, read_rows

SUGGESTED_ROWS = 20     # train rows whose suggested reply is looked at for layouts, where no reply earned full reward
FULL = 1.0 - 1e-9


@dataclass(frozen=True)
class ReplyVerdict:
    """One failing reply: what it needs, and the repaired reply that proves it (None where no repair was paid for)."""

    id: str
    question: str
    reference: str | None
    reply: str
    reward: float
    verdict: VerdictName
    content_deficit: float
    form_deficit: float
    p_content: float
    stake: float
    repaired: str | None
    repaired_reward: float | None


@dataclass(frozen=True)
class ReplyReport:
    """What a log of replies lacks. tolerance: noise of the reward that was worked with; reward_calls: all that it took.

    known_good: replies that earned full reward, from which layouts were learnt; suggested: whether, for want of one,
    the layout came from the reward's own suggestions for the task's train rows.
    """

    rows: int
    passed: int
    reward: float
    demand: Demand
    verdicts: tuple[ReplyVerdict, ...]
    known_good: int
    suggested: bool
    tolerance: float
    reward_calls: int


def classify_replies(
    task: Task | str | Path, replies: str | Path | Sequence[Mapping[str, Any]], *, reply_field: str = "reply",
    settings: AttributionSettings = CLASSIFIER_DEFAULTS,
) -> ReplyReport:
    """Content, form or both, for each reply that does not earn full reward under the task's reward.

    task: one that is loaded, or what `load_task` takes. replies: a file (.jsonl, .json, .csv, .parquet) or rows, with
    question, reference, reply and whatever columns the checks ask for; what a row leaves out is taken from the task's
    row of the same question. Raises TaskError with file and line where a row cannot be used, RewardError with the row
    where the reward misbehaves.
    """
    task = task if isinstance(task, Task) else load_task(task)
    graded, before = read_replies(task, replies, reply_field), task.reward.calls
    scored = [Graded(row, reply, task.reward(row, reply)) for row, reply in graded]
    tolerance = tolerance_of(task.reward, scored)
    good = [each for each in scored if each.score.value >= FULL - tolerance]
    failing = [each for each in scored if each.score.value < FULL - tolerance]
    suggested = bool(failing) and not good
    known = suggestions(task) if suggested else good
    found = classify(failing, task.reward, known_good=known, train=task.train, settings=settings)
    verdicts = tuple(_verdict(each, answer, task.reward) for each, answer in zip(failing, found, strict=True))
    return ReplyReport(
        rows=len(scored), passed=len(good), reward=sum(each.score.value for each in scored) / len(scored),
        demand=demand(found), verdicts=verdicts, known_good=len(good), suggested=suggested and bool(known),
        tolerance=tolerance, reward_calls=task.reward.calls - before)


def suggestions(task: Task) -> list[Graded]:
    """Replies to train rows that the reward itself suggests, where it can tell; each was verified to earn it all."""
    found = [(row, task.reward.suggestion(row)) for row in task.train[:SUGGESTED_ROWS]]
    return [Graded(row, reply, task.reward(row, reply)) for row, reply in found if reply is not None]


def read_replies(
    task: Task, replies: str | Path | Sequence[Mapping[str, Any]], reply_field: str
) -> list[tuple[Example, str]]:
    """Rows with their replies; each row has an id of its own. Raises TaskError with file and line."""
    rows = read_rows(Path(replies)) if isinstance(replies, str | Path) else from_python(replies, "replies")
    if not rows:
        raise TaskError(f"{replies if isinstance(replies, str | Path) else 'replies'}: no reply came: write one JSON "
                        "object a line, with question, reference and reply.")
    known = {same_question(row.question): row for row in (*task.train, *task.validation, *task.test)}
    pairs: list[tuple[Example, str]] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        example, reply = _pair(row, task.reward, known, reply_field)
        if example.id in seen:      # several replies to one row
            example = replace(example, id=f"{example.id}#{number}")
        seen.add(example.id)
        pairs.append((example, reply))
    return pairs


def _pair(row: Row, reward: Reward, known: Mapping[str, Example], reply_field: str) -> tuple[Example, str]:
    columns = row.columns
    question = _text(row, "question")
    twin = known.get(same_question(question))
    if "reference" not in columns and twin is None:
        raise TaskError(f"{row.place}: no field 'reference' (found: {', '.join(map(str, columns))}), and the question "
                        "is none of the task's: add it, or write null where there is none.")
    if reply_field not in columns:
        raise TaskError(f"{row.place}: no field {reply_field!r} (found: {', '.join(map(str, columns))}): name the one "
                        "that holds the reply with --reply-field (in Python: reply_field=).")
    reference = columns.get("reference", twin.reference if twin else None)
    if reference is not None and (not isinstance(reference, str) or not reference.strip()):
        raise TaskError(f"{row.place}: the reference is {reference!r}: write it in quotes, or null for none.")
    fields = {**(twin.fields if twin else {}), **columns}
    example = Example(str(columns.get("id", f"row-{row.number}")), question, reference, fields)
    problem = reward.problem(example)
    if problem is not None:
        raise TaskError(f"{row.place}: {problem}.")
    return example, _text(row, reply_field, empty=True)


def _text(row: Row, field: str, *, empty: bool = False) -> str:
    value = row.columns.get(field)
    if field not in row.columns:
        raise TaskError(f"{row.place}: no field {field!r} (found: {', '.join(map(str, row.columns))}): add it.")
    if not isinstance(value, str) or not (empty or value.strip()):
        raise TaskError(f"{row.place}: the {field} is {value!r}, but text is wanted: write it in quotes.")
    return value


def _verdict(failure: Graded, found: Attribution, reward: Reward) -> ReplyVerdict:
    paid = None if found.repaired is None or reward.costly else reward(failure.example, found.repaired).value
    return ReplyVerdict(
        id=found.example_id, question=failure.example.question, reference=failure.example.reference,
        reply=failure.reply, reward=failure.score.value, verdict=found.verdict,
        content_deficit=found.content_deficit, form_deficit=found.form_deficit, p_content=found.p_content,
        stake=found.stake, repaired=found.repaired, repaired_reward=paid)
