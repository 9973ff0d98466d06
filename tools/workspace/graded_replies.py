"""Replies of a candidate to rows of the task, graded by the reward."""

from collections.abc import Sequence

from nslora.tools.evaluation.rollouts import Replies, ask, grade
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.workspace.workspace import Workspace


def graded_replies(
    workspace: Workspace, prompt: Prompt, adapter: str | None, rows: Sequence[Example], on_progress: OnProgress
) -> tuple[list[Graded], Replies]:
    """The policy's graded replies to these rows, and what they cost; the reply cache answers what it knows."""
    replies = ask(
        workspace.policy,
        workspace.replies,
        prompt,
        [row.question for row in rows],
        adapter=adapter,
        max_new_tokens=workspace.task.max_new_tokens,
        on_progress=on_progress,
    )
    return grade(workspace.task.reward, rows, replies.texts), replies


def mean_reward(graded: Sequence[Graded]) -> float:
    """Mean reward of at least one reply."""
    return float(sum(each.score.value for each in graded) / len(graded))
