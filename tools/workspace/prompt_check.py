"""Checks of a proposed prompt against the run: its context, its held-out rows, its protected texts."""

import heapq
from collections.abc import Sequence

from nslora.tools.agents.running import try_agent
from nslora.tools.errors import PromptError, TaskError
from nslora.tools.inference.context_length import refuse_long_questions
from nslora.tools.prompt import Prompt, check_prompt, control_tokens, normalise
from nslora.tools.schema import Example
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.workspace import Workspace

LONGEST_COUNTED = 16  # questions whose tokens are counted to find the longest


def check_for_run(prompt: Prompt, workspace: Workspace, kept: Prompt | None = None) -> None:
    """Raise PromptError for a prompt that must not be proposed.

    kept: that in force, if an editor proposes; its own new demonstrations must be right, and a person's need not.
    """
    train, held_out = workspace.task.train, (*workspace.task.validation, *workspace.task.test)
    longest = _longest((*train, *held_out, *workspace.regression_set), workspace)
    check_prompt(
        prompt,
        count_tokens=workspace.count_tokens,
        context_tokens=workspace.policy.context_tokens,
        longest=longest,
        max_new_tokens=workspace.task.max_new_tokens,
        forbidden_questions=[text for row in held_out for text in workspace.task.reader.quotable(row)],
        allowed_questions=[text for row in train for text in workspace.task.reader.quotable(row)],
        protected=workspace.settings.editing.protected,
        columns=workspace.task.columns,
        read_by_agent=[each.name for each in workspace.task.prompt.sections] if workspace.task.agent else None,
    )
    try:
        try_agent(workspace.task, prompt)
    except TaskError as error:
        raise PromptError(str(error)) from error
    if kept is not None:
        _refuse_wrong_demonstrations(prompt, kept, workspace.task)
        _refuse_control_tokens(prompt, kept, train)


def _refuse_wrong_demonstrations(prompt: Prompt, kept: Prompt, task: Task) -> None:
    """Raise PromptError if a new demonstration of a train row earns less by the reward than a known right reply.

    If no right reply to the row is known, it must earn something.
    """
    for number, each in enumerate(prompt.demonstrations, 1):
        rows = [row for row in task.train if normalise(row.asked) == normalise(each.question)]
        if each in kept.demonstrations or not rows:
            continue
        row, score = max(((row, task.reward(row, each.reply)) for row in rows), key=lambda graded: graded[1].value)
        if not score.passed and (score.value <= 0 or task.reward.suggestion(row) is not None):
            raise PromptError(
                f"Demonstration {number} earns {score.value:.2f} of 1 by the reward on its own row: {score.feedback}"
            )


def _refuse_control_tokens(prompt: Prompt, kept: Prompt, train: Sequence[Example]) -> None:
    """Raise PromptError if an edit brings a mark of turns that neither the prompt in force nor a train row holds."""
    new = control_tokens(prompt.render()) - control_tokens(kept.render())
    if new and (new := new - control_tokens("\n".join(f"{row.asked}\n{row.reference or ''}" for row in train))):
        raise PromptError(
            f"The prompt contains {min(new)!r}, which ends or begins a turn for the model: remove it; the chat "
            "template writes the turns."
        )


def _longest(rows: Sequence[Example], workspace: Workspace) -> Example:
    """The row of most tokens among those of most bytes: counting them all takes long on a large task."""
    different = {row.asked: row for row in rows}
    few = heapq.nlargest(LONGEST_COUNTED, different, key=lambda asked: len(asked.encode()))
    return different[max(few, key=lambda asked: workspace.count_tokens([{"role": "user", "content": asked}]))]


def refuse_long_rows(workspace: Workspace, prompt: Prompt) -> None:
    """Raise TooLongError, naming the row, if a row of the task does not fit the model's context under this prompt."""
    task = workspace.task
    refuse_long_questions(
        {
            "train": task.train,
            "validation": task.validation,
            "test": task.test,
            "anchor": workspace.regression_set,
        },
        prompt,
        count=workspace.token_counts,
        context_tokens=workspace.policy.context_tokens,
        max_new_tokens=task.max_new_tokens,
    )
