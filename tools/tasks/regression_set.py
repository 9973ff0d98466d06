"""The regression set: questions of the user's own on which no update may make the model worse.

Each candidate answers them, the task's reward judges the replies, and no candidate is kept under which their mean
reward falls. They are never learnt from and never shown to an editor.
"""

from pathlib import Path

from nslora.tools.errors import TaskError
from nslora.tools.schema import Example
from nslora.tools.tasks.readers import read_rows
from nslora.tools.tasks.task import Task, any_keys, keys_of


def read_regression_set(path: str | None, task: Task) -> tuple[Example, ...]:
    """The rows of an regression file: question and reference, and whatever columns the task's checks ask for.

    None gives no rows. Raises TaskError, with file and line, where a row cannot be judged or stands in the test or the
    train split.
    """
    if path is None:
        return ()
    rows = read_rows(Path(path))
    if not rows:
        raise TaskError(f"{path}: the anchor set has no rows: write question and reference, one JSON object a line.")
    tested, learnt = any_keys(task.test), any_keys(task.train)
    examples = []
    for row in rows:
        question, reference = row.columns.get("question"), row.columns.get("reference")
        if not isinstance(question, str) or not question.strip():
            found = ", ".join(map(str, row.columns))
            raise TaskError(f"{row.place}: no question (found: {found}): an anchor row has question and reference.")
        if keys_of(question) & tested:
            raise TaskError(f"{row.place}: {question[:80]!r} stands in the test split, which is looked at only once.")
        if keys_of(question) & learnt:
            raise TaskError(
                f"{row.place}: {question[:80]!r} stands in the train split, but an anchor is never learnt "
                "from: take it out of one of the two."
            )
        text = reference if isinstance(reference, str) and reference.strip() else None
        example = Example(f"anchor-{row.number}", question, text, row.columns)
        problem = task.reward.problem(example)
        if problem is not None:
            raise TaskError(f"{row.place}: {problem}.")
        examples.append(example)
    return tuple(examples)
