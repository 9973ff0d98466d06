"""The most tokens and model FLOPs that a step can take, counted before it begins."""

import math
from collections.abc import Sequence

from nslora.tools.dataset.remade import hinted, with_hint
from nslora.tools.policy import TrainingJob
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Dialogue, Example, answered
from nslora.tools.workspace.workspace import Workspace

END_TOKENS = 8  # that a chat template writes around a reply
TOOL_TOKENS = 128  # that a tool's result and the sections of a node are reckoned with; nobody knows them beforehand


def row_tokens(workspace: Workspace, prompt: Prompt, rows: Sequence[Example]) -> int:
    """Tokens of rows with their references under a prompt; of an agent, of all calls that it may make for them."""
    if workspace.task.agent:
        return sum(_calls_tokens(workspace, count) for count in workspace.token_counts([*map(prompt.dialogue, rows)]))
    return sum(workspace.token_counts([answered(prompt.dialogue(row), row.target or "") for row in rows]))


def replies_flop(workspace: Workspace, dialogues: Sequence[Dialogue]) -> float:
    """Most model FLOPs that replies to these dialogues take, or an agent's trajectories that begin with them."""
    return workspace.flop_rates.forward * sum(
        _calls_tokens(workspace, count) for count in workspace.token_counts(dialogues)
    )


def _calls_tokens(workspace: Workspace, count: int) -> int:
    """Tokens through the model for a dialogue of `count` tokens; an agent's further calls send all that came before."""
    longest, agent = workspace.task.max_new_tokens + END_TOKENS, workspace.task.agent
    if agent is None:
        return count + longest
    calls = agent.spec.max_calls
    return calls * (count + longest + TOOL_TOKENS) + (longest + TOOL_TOKENS) * calls * (calls - 1) // 2


def evaluation_flop(workspace: Workspace, prompt: Prompt, round_number: int) -> float:
    """Most model FLOPs that the evaluation of a candidate with this prompt takes."""
    scored = 0  # an agent's references are not scored
    if workspace.task.agent is None:
        scored = row_tokens(workspace, prompt, [row for row in workspace.task.validation if row.reference])
    asked = [prompt.dialogue(row) for row in workspace.measured_rows(round_number)]
    return replies_flop(workspace, asked) + workspace.flop_rates.forward * scored


def remakes_flop(workspace: Workspace, prompt: Prompt, rows: Sequence[Example], askers: int) -> list[float]:
    """Most model FLOPs that answering each row anew takes. askers: how many models answer it."""
    if agent := workspace.task.agent:  # greedily, and by as many samples
        return [(1 + agent.spec.samples) * replies_flop(workspace, [prompt.dialogue(row)]) for row in rows]
    hints = hinted(prompt, rows)
    counts = workspace.token_counts([hints.dialogue(with_hint(row)) for row in rows])
    longest = workspace.task.max_new_tokens + END_TOKENS
    return [askers * workspace.flop_rates.forward * (count + longest) for count in counts]


def most_tokens(job: TrainingJob, workspace: Workspace) -> int:
    """Tokens of all epochs of a training job, with the template's opening of a next turn."""
    return job.epochs * sum(workspace.token_counts([answered(row.dialogue, row.completion) for row in job.rows]))


def planned_tokens(job: TrainingJob, workspace: Workspace) -> int:
    """The same of the steps that a training job is planned with; `max_steps` may end it before its epochs."""
    lora = workspace.settings.lora
    steps = math.ceil(job.epochs * len(job.rows) / lora.batch_size)
    share = min(1.0, lora.max_steps / steps) if lora.max_steps is not None else 1.0
    return math.ceil(share * most_tokens(job, workspace))
