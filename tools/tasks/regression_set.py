"""The regression set: the user's own questions, on which no update may make the model worse.

Every candidate answers them and the task's reward scores the replies. A candidate that lowers their mean reward is
dropped. No training job uses these rows, and no editor sees them.
"""

from pathlib import Path

from nslora.tools.answers import accepted_texts
from nslora.tools.errors import TaskError
from nslora.tools.schema import Example, transcript
from nslora.tools.tasks.known_formats import SYSTEM_COLUMN, converted, in_known_format, with_system
from nslora.tools.tasks.readers import SourceRow, read_rows
from nslora.tools.tasks.splits import keys_of
from nslora.tools.tasks.task import Task, any_keys


def read_regression_set(path: str | None, task: Task) -> tuple[Example, ...]:
    """Read the rows of a regression set: question, reference, and every column that the task's checks need.

    Args:
        path: A file that `read_rows` can read. None gives no rows.
        task: Its reward must be able to score each row.

    Raises:
        TaskError: If a row cannot be scored, or is also in the test or the train split. The message names the line.
    """
    if path is None:
        return ()
    rows = read_rows(Path(path))
    if not rows:
        raise TaskError(
            f"{path}: the regression set has no rows: write a JSON object with question and reference on each line."
        )
    if kind := in_known_format(rows[0].columns):
        rows = converted(rows, kind)
        shared = task.prompt.system
        rows = [row if row.columns.get(SYSTEM_COLUMN) == shared else with_system(row) for row in rows]
    splits = {
        "test": (any_keys(task.test), "which a run looks at only once"),
        "train": (any_keys(task.train), "but training never uses the regression set"),
    }
    examples = []
    for row in rows:
        question = _question(row, task)
        for split, (keys, reason) in splits.items():
            if keys_of(transcript(row.history, question)) & keys:
                raise TaskError(
                    f"{row.place}: {question[:80]!r} is also in the {split} split, {reason}: "
                    "remove it from one of the two."
                )
        try:
            answers = accepted_texts(row.columns.get("reference"))
        except ValueError as error:
            raise TaskError(f"{row.place}: the reference cannot be read: {error}.") from error
        several = tuple(answers) if len(answers) > 1 else ()
        reference = answers[0] if answers else None
        example = Example(f"anchor-{row.number}", question, reference, row.columns, several, history=row.history)
        if problem := task.reward.problem(example):
            raise TaskError(f"{row.place}: {problem}.")
        examples.append(example)
    return tuple(examples)


def _question(row: SourceRow, task: Task) -> str:
    """Read the question: the columns that the task's prompt asks, or else the column `question`."""
    if task.reader.question_template is not None:
        return task.reader.question(row)
    question = row.columns.get("question")
    if not isinstance(question, str) or not question.strip():
        found = ", ".join(map(str, row.columns))
        raise TaskError(f"{row.place}: no question (found: {found}): write question and reference.")
    return question
