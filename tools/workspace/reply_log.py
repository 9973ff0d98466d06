"""The classifier alone: classify the failing replies of any log by a task's reward. Loads no model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from nslora.tools.classifier.attribution import Attribution, Need, VerdictName, need_of
from nslora.tools.classifier.classify import classify_failures, tolerance_of
from nslora.tools.errors import TaskError
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.tasks.readers import SourceRow, from_python, read_rows
from nslora.tools.tasks.splits import same_question
from nslora.tools.tasks.task import Task, load_task

SUGGESTED_ROWS = 20  # train rows whose suggested reply may give a layout, if no reply earned full reward
FULL = 1.0 - 1e-9


@dataclass(frozen=True)
class ReplyVerdict:
    """One failing reply, what it needs, and the repaired reply that proves it (None if no repair earned more)."""

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
    """What the replies of a log lack.

    Attributes:
        rows: Replies in the log; passed: those with full reward; reward: their mean reward.
        need: Shares of content, form and both among the failing replies.
        verdicts: One per failing reply.
        known_good: Replies with full reward, from which layouts were learnt.
        suggested: True if no reply had full reward and the layouts came from the reward's suggestions for train rows.
        tolerance: Noise of the reward that was allowed for.
        reward_calls: Calls of the reward, in all.
    """

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"need": "demand"}

    rows: int
    passed: int
    reward: float
    need: Need
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
) -> ReplyReport:
    """Say of each reply without full reward under the task's reward whether it lacks content, form or both.

    Args:
        task: A task, or what `load_task` takes.
        replies: A file (.jsonl, .json, .csv, .parquet) or rows, with question, reference, reply and the columns that
            the checks need. A missing column is taken from the task's row of the same question.
        reply_field: Column of the reply.
        question_field: Column of the question.
        reference_field: Column of the reference.

    Raises:
        TaskError: A row cannot be used; the message names file and line.
        RewardError: The reward raised or returned no number in [0, 1]; the message names the row.
    """
    task = task if isinstance(task, Task) else load_task(task)
    # Rows without an id are named by their number, so a cached score could belong to a row of an earlier log.
    task = replace(task, reward=task.reward.anew())
    fields = {"question": question_field, "reference": reference_field, "reply": reply_field}
    pairs, before = _read_replies(task, replies, fields), task.reward.calls
    scored = grade(task.reward, [row for row, _ in pairs], [reply for _, reply in pairs])
    tolerance = tolerance_of(task.reward, scored)
    good = [each for each in scored if each.score.value >= FULL - tolerance]
    failing = [each for each in scored if each.score.value < FULL - tolerance]
    suggested = suggestions(task) if failing and not good else []
    found = classify_failures(failing, task.reward, known_good=good or suggested, train=task.train)
    verdicts = tuple(_verdict(each, answer, task.reward) for each, answer in zip(failing, found, strict=True))
    return ReplyReport(
        rows=len(scored),
        passed=len(good),
        reward=sum(each.score.value for each in scored) / len(scored),
        need=need_of(found),
        verdicts=verdicts,
        known_good=len(good),
        suggested=bool(suggested),
        tolerance=tolerance,
        reward_calls=task.reward.calls - before,
    )


def suggestions(task: Task) -> list[Graded]:
    """Replies to train rows that the reward itself suggests and that earn full reward."""
    found = [(row, task.reward.suggestion(row)) for row in task.train[:SUGGESTED_ROWS]]
    return [Graded(row, reply, task.reward(row, reply)) for row, reply in found if reply is not None]


def _read_replies(
    task: Task, replies: str | Path | Sequence[Mapping[str, Any]], fields: Mapping[str, str]
) -> list[tuple[Example, str]]:
    """Rows with their replies, each with its own id. Raises TaskError with file and line."""
    if isinstance(replies, str | Path):
        if not os.path.exists(replies):
            raise TaskError(f"{replies}: there is no such file: name the log of replies.")
        place, rows = str(replies), read_rows(Path(replies))
    else:
        place, rows = "replies", from_python(replies, "replies")
    if not rows:
        raise TaskError(f"{place}: no reply came: write one JSON object a line, with question, reference and reply.")
    known = {same_question(row.asked): row for row in (*task.train, *task.validation, *task.test)}
    pairs: dict[str, tuple[Example, str]] = {}
    for number, row in enumerate(rows, 1):
        example, reply = _pair(row, task, known, fields)
        while example.id in pairs:  # several replies to one row
            example = replace(example, id=f"{example.id}#{number}")
        pairs[example.id] = (example, reply)
    return list(pairs.values())


def _pair(row: SourceRow, task: Task, known: Mapping[str, Example], fields: Mapping[str, str]) -> tuple[Example, str]:
    """The example and the reply of one row of the log."""
    columns = row.columns
    asked = task.reader.can_ask(columns)
    question = task.reader.question(row) if asked else _text(row, "question", fields["question"])
    twin = known.get(same_question(question))
    if fields["reference"] not in columns and twin is None:
        raise TaskError(
            f"{row.place}: no field {fields['reference']!r} (found: {', '.join(map(str, columns))}), and the task has "
            "no row with this question: add the field (null without a reference), or name the one that holds the "
            "reference with --reference-field (in Python: reference_field=)."
        )
    reply = _text(row, "reply", fields["reply"], empty=True)
    reference = columns.get(fields["reference"], twin.reference if twin else None)
    answers = twin.answers if twin and fields["reference"] not in columns else ()
    if isinstance(reference, list) and all(isinstance(each, str) and each.strip() for each in reference) and reference:
        reference, answers = reference[0], tuple(reference) if len(reference) > 1 else ()
    if reference is not None and (not isinstance(reference, str) or not reference.strip()):
        raise TaskError(f"{row.place}: the reference is {reference!r}: write it in quotes, or null for none.")
    known_columns = {**(twin.fields if twin else {}), **columns, "question": question, "reference": reference}
    example = Example(str(columns.get("id", f"row-{row.number}")), question, reference, known_columns, answers)
    if twin and twin.history:
        example = replace(example, question=twin.question, history=twin.history)
    if (problem := task.reward.problem(example)) is not None:
        raise TaskError(f"{row.place}: {problem}.")
    return example, reply


def _text(row: SourceRow, role: str, field: str, *, empty: bool = False) -> str:
    """The text in a column. empty: whether it may be empty."""
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
        question=failure.example.asked,
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
