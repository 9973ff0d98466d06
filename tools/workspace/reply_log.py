"""The classifier alone: anyone's log of failing replies, judged by a task's reward. No model is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from nslora.tools.classifier.attribution import Attribution, Need, VerdictName, need_of
from nslora.tools.classifier.classify import classify_failures, tolerance_of
from nslora.tools.classifier.counterfactuals import DEFAULTS as CLASSIFIER_DEFAULTS
from nslora.tools.classifier.counterfactuals import AttributionSettings
from nslora.tools.errors import TaskError
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.tasks.readers import SourceRow, from_python, read_rows
from nslora.tools.tasks.task import Task, load_task, same_question

SUGGESTED_ROWS = 20  # train rows whose suggested reply is looked at for layouts, where no reply earned full reward
FULL = 1.0 - 1e-9


@dataclass(frozen=True)
class LogFields:
    """The fields of a log that hold question, reference and reply."""

    question: str = "question"
    reference: str = "reference"
    reply: str = "reply"


@dataclass(frozen=True)
class ReplyVerdict:
    """One failing reply: what it needs, and the repaired reply that proves it (None where no repair was paid for)."""

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"missing_reward": "stake"}

    id: str
    question: str
    reference: str | None
    reply: str
    reward: float
    verdict: VerdictName
    content_deficit: float
    form_deficit: float
    p_content: float
    missing_reward: float
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
    demand: Need
    verdicts: tuple[ReplyVerdict, ...]
    known_good: int
    suggested: bool
    tolerance: float
    reward_calls: int


def classify_replies(
    task: Task | str | Path,
    replies: str | Path | Sequence[Mapping[str, Any]],
    *,
    reply_field: str = "reply",
    question_field: str = "question",
    reference_field: str = "reference",
    settings: AttributionSettings = CLASSIFIER_DEFAULTS,
) -> ReplyReport:
    """Content, form or both, for each reply that does not earn full reward under the task's reward.

    task: one that is loaded, or what `load_task` takes. replies: a file (.jsonl, .json, .csv, .parquet) or rows, with
    question, reference, reply and whatever columns the checks ask for; what a row leaves out is taken from the task's
    row of the same question. Raises TaskError with file and line where a row cannot be used, RewardError with the row
    where the reward misbehaves.
    """
    task = task if isinstance(task, Task) else load_task(task)
    # Rows of a log are named by their number: mended since, one would get the score of what stood there before.
    task = replace(task, reward=task.reward.anew())
    fields = LogFields(question_field, reference_field, reply_field)
    graded, before = read_replies(task, replies, fields), task.reward.calls
    scored = [Graded(row, reply, task.reward(row, reply)) for row, reply in graded]
    tolerance = tolerance_of(task.reward, scored)
    good = [each for each in scored if each.score.value >= FULL - tolerance]
    failing = [each for each in scored if each.score.value < FULL - tolerance]
    suggested = bool(failing) and not good
    known = suggestions(task) if suggested else good
    found = classify_failures(failing, task.reward, known_good=known, train=task.train, settings=settings)
    verdicts = tuple(_verdict(each, answer, task.reward) for each, answer in zip(failing, found, strict=True))
    return ReplyReport(
        rows=len(scored),
        passed=len(good),
        reward=sum(each.score.value for each in scored) / len(scored),
        demand=need_of(found),
        verdicts=verdicts,
        known_good=len(good),
        suggested=suggested and bool(known),
        tolerance=tolerance,
        reward_calls=task.reward.calls - before,
    )


def suggestions(task: Task) -> list[Graded]:
    """Replies to train rows that the reward itself suggests, where it can tell; each was verified to earn it all."""
    found = [(row, task.reward.suggestion(row)) for row in task.train[:SUGGESTED_ROWS]]
    return [Graded(row, reply, task.reward(row, reply)) for row, reply in found if reply is not None]


def read_replies(
    task: Task, replies: str | Path | Sequence[Mapping[str, Any]], fields: LogFields
) -> list[tuple[Example, str]]:
    """Rows with their replies; each row has an id of its own. Raises TaskError with file and line."""
    if isinstance(replies, str | Path) and not os.path.exists(replies):
        raise TaskError(f"{replies}: there is no such file: name the log of replies.")
    rows = read_rows(Path(replies)) if isinstance(replies, str | Path) else from_python(replies, "replies")
    if not rows:
        raise TaskError(
            f"{replies if isinstance(replies, str | Path) else 'replies'}: no reply came: write one JSON "
            "object a line, with question, reference and reply."
        )
    known = {same_question(row.question): row for row in (*task.train, *task.validation, *task.test)}
    pairs: list[tuple[Example, str]] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        example, reply = _pair(row, task.reward, known, fields)
        if example.id in seen:  # several replies to one row
            example = replace(example, id=f"{example.id}#{number}")
        seen.add(example.id)
        pairs.append((example, reply))
    return pairs


def _pair(row: SourceRow, reward: Reward, known: Mapping[str, Example], fields: LogFields) -> tuple[Example, str]:
    columns, found = row.columns, ", ".join(map(str, row.columns))
    question = _text(row, "question", fields.question)
    twin = known.get(same_question(question))
    if fields.reference not in columns and twin is None:
        raise TaskError(
            f"{row.place}: no field {fields.reference!r} (found: {found}), and the question is none of the "
            "task's: add it (null where there is none), or name the one that holds the reference with "
            "--reference-field (in Python: reference_field=)."
        )
    reply = _text(row, "reply", fields.reply, empty=True)
    reference = columns.get(fields.reference, twin.reference if twin else None)
    if reference is not None and (not isinstance(reference, str) or not reference.strip()):
        raise TaskError(f"{row.place}: the reference is {reference!r}: write it in quotes, or null for none.")
    known_columns = {**(twin.fields if twin else {}), **columns, "question": question, "reference": reference}
    example = Example(str(columns.get("id", f"row-{row.number}")), question, reference, known_columns)
    problem = reward.problem(example)
    if problem is not None:
        raise TaskError(f"{row.place}: {problem}.")
    return example, reply


def _text(row: SourceRow, role: str, field: str, *, empty: bool = False) -> str:
    value = row.columns.get(field)
    if field not in row.columns:
        raise TaskError(
            f"{row.place}: no field {field!r} (found: {', '.join(map(str, row.columns))}): name the one "
            f"that holds the {role} with --{role}-field (in Python: {role}_field=)."
        )
    if not isinstance(value, str) or not (empty or value.strip()):
        raise TaskError(f"{row.place}: the {role} is {value!r}, but text is wanted: write it in quotes.")
    return value


def _verdict(failure: Graded, found: Attribution, reward: Reward) -> ReplyVerdict:
    paid = None if found.repaired is None or reward.costly else reward(failure.example, found.repaired).value
    return ReplyVerdict(
        id=found.example_id,
        question=failure.example.question,
        reference=failure.example.reference,
        reply=failure.reply,
        reward=failure.score.value,
        verdict=found.verdict,
        content_deficit=found.content_deficit,
        form_deficit=found.form_deficit,
        p_content=found.p_content,
        missing_reward=found.missing_reward,
        repaired=found.repaired,
        repaired_reward=paid,
    )
