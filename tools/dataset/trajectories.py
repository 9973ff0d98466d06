"""Training rows of an agent: the policy's own calls in trajectories with full reward (rejection sampling)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace

from nslora.tools.agents.running import run_agent, with_trajectories
from nslora.tools.dataset.remade import Remade, RemadeRow
from nslora.tools.errors import TaskError, first_line
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policy import OnProgress, Policy, Sampling, no_progress
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.tasks.agent import Agent
from nslora.tools.tasks.task import Task
from nslora.tools.thinking import split_thinking
from nslora.tools.trajectory import Trajectory


def remake_calls(
    policy: Policy,
    cache: ReplyCache | None,
    task: Task,
    prompt: Prompt,
    examples: Sequence[Example],
    *,
    adapter: str | None,
    edit: str = "",
    on_progress: OnProgress = no_progress,
) -> Remade:
    """Rows of the first passing trajectory of each train example under a prompt.

    Each example is tried greedily first. Those that earn no full reward are tried again by samples at the agent's
    temperature, until one passes or all `agent.samples` are used up.

    Args:
        policy: Replies. One of a user's own that cannot sample is asked greedily alone.
        cache: Known replies and trajectories.
        task: With an agent.
        prompt: That the rows teach.
        examples: Of train.
        adapter: In force; None for the base.
        edit: Name of the edit that proposed the prompt; "" for the kept one.
        on_progress: Called with (trajectories done, wanted) within each try.
    """
    agent = task.agent
    if agent is None or not examples:
        return Remade((), 0)
    tries: list[Sampling | None] = [None]
    if "sampling" in (named := inspect.signature(policy.generate).parameters) or any(
        each.kind is each.VAR_KEYWORD for each in named.values()
    ):
        tries += [Sampling(agent.spec.temperature, number + 1) for number in range(agent.spec.samples)]
    left, tokens, forward = list(examples), 0, 0
    rows: dict[str, list[RemadeRow]] = {}
    for sampling in tries:
        if not left:
            break
        flown = run_agent(
            policy, cache, task, prompt, left, adapter=adapter, sampling=sampling, on_progress=on_progress
        )
        tokens, forward = tokens + flown.tokens, forward + flown.forward_tokens
        for each in grade(task.reward, with_trajectories(left, flown.trajectories), flown.replies.texts):
            if each.score.passed:
                rows[each.example.id] = list(rows_of(agent, each, prompt, adapter, edit))
        left = [example for example in left if example.id not in rows]
    return Remade(tuple(row for example in examples for row in rows.get(example.id, ())), tokens, forward)


def rows_of(agent: Agent, graded: Graded, prompt: Prompt, adapter: str | None, edit: str = "") -> Iterable[RemadeRow]:
    """The calls of a passing trajectory that weights learn, as rows; not those that the length limit ended."""
    example, trajectory = replace(graded.example, trajectory=None), graded.example.trajectory
    for number in credited(agent, trajectory, example):
        call = trajectory.calls[number]
        if not call.truncated:
            thinking, reply = split_thinking(call.reply)
            yield RemadeRow(
                example.id,
                example.question,
                reply,
                prompt.hash,
                adapter,
                graded.score.value,
                edit,
                thinking,
                example.history,
                call.dialogue,
            )


def credited(agent: Agent, trajectory: Trajectory, example: Example) -> list[int]:
    """Numbers of the calls that weights learn: all, or those that the user's function names.

    Raises:
        TaskError: If the function raises, or returns anything else than numbers of calls.
    """
    count = len(trajectory.calls)
    if agent.credit is None:
        return list(range(count))
    try:
        found = sorted({int(number) for number in agent.credit(trajectory, example)})
    except Exception as error:
        raise TaskError(
            f"The agent's credit raised {type(error).__name__} on row {example.id} ({first_line(error)}): return the "
            "numbers of the calls to learn, from 0."
        ) from error
    if any(not 0 <= number < count for number in found):
        raise TaskError(
            f"The agent's credit returned {found} on row {example.id}, which has {count} calls: return numbers of "
            "calls, from 0."
        )
    return found
