"""Which call of a failing trajectory is at fault, and does it lack form or content?

Form: a call that cannot be read, a tool that passing trajectories use and this one does not, an answer that is not
given in the asked way, an agent that never ends. Content: a well-formed call with a wrong argument, or a wrong answer.

What a malformed call cost is asked of the reward, by a replay of the trajectory with that call mended. What the answer
lacks is asked of it by repairs of the answer, as for a task of one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nslora.tools.classifier.attribution import Attribution, VerdictName
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.trajectory import ModelCall, ToolCall, Trajectory

SURE = 0.95  # probability of a verdict that needs no trade-off


@dataclass(frozen=True)
class Judged:
    """What a failing trajectory needs. fault: the call, from 1, and what is wrong with it, in words."""

    attribution: Attribution
    fault: str


def judge_calls(
    failures: Sequence[Graded],
    attributions: Sequence[Attribution],
    reward: Reward,
    *,
    mended: Mapping[str, Trajectory],
    passing: Sequence[Graded],
) -> list[Judged]:
    """Say of each failing trajectory which call is at fault.

    Args:
        failures: Failing rows, with their trajectories.
        attributions: What their answers need.
        reward: Scores the answers of mended trajectories.
        mended: Trajectories with one call mended, by id of the row.
        passing: Rows with full reward, with their trajectories.
    """
    uses = [bool(done.tools_used) for each in passing if (done := each.example.trajectory)]
    wants_tools = bool(uses) and all(uses)
    return [
        _judged(each, found, reward, mended.get(each.example.id), wants_tools)
        for each, found in zip(failures, attributions, strict=True)
    ]


def _judged(
    failure: Graded, found: Attribution, reward: Reward, mended: Trajectory | None, wants_tools: bool
) -> Judged:
    done: Trajectory = failure.example.trajectory
    calls = done.calls
    malformed = next((i for i, call in enumerate(calls) if call.malformed), None)
    offered = next((i for i, call in enumerate(calls) if call.dialogue and call.dialogue[0]["role"] == "tools"), None)
    if mended is not None or malformed is not None:
        at = malformed if malformed is not None else offered or 0
        why = calls[at].malformed or "the call of a tool is not in the form that was asked for"
        return Judged(_by_form(failure, found, _reward_of(failure, reward, mended)), f"call {at + 1}: {why}")
    if offered is not None and wants_tools and not done.tools_used:
        return Judged(
            _by_form(failure, found, None), f"call {offered + 1}: no tool was called, but right replies call one"
        )
    if done.failure:
        return _of_a_broken_one(failure, found, done)
    if found.verdict == "form":
        return Judged(found, f"call {len(calls)}: the answer is not given in the asked way" if calls else "")
    at, why = _wrong_content(failure, done)
    return Judged(found, f"call {at}: {why}" if at else "")


def _reward_of(failure: Graded, reward: Reward, mended: Trajectory | None) -> float | None:
    """What the mended trajectory earns; None without one."""
    if mended is None:
        return None
    return 0.0 if mended.failure else reward(replace(failure.example, trajectory=mended), mended.answer).value


def _by_form(failure: Graded, found: Attribution, earned: float | None) -> Attribution:
    """The verdict on a call that lacks form. earned: by the trajectory with that call mended; None if unknown.

    What is still missing then is content.
    """
    missing = max(found.missing_reward, 1e-9)
    left = 0.0 if earned is None else min(1.0, max(0.0, 1.0 - earned) / missing)
    repaired = failure.score.value if earned is None else max(earned, failure.score.value)
    verdict: VerdictName = "form" if left < 1 - 1e-9 or earned is None else "both"
    p_content = 1 - SURE if verdict == "form" else 0.5
    return replace(
        found,
        content_deficit=left,
        form_deficit=1.0,
        p_content=p_content,
        verdict=verdict,
        repaired=None,
        repaired_reward=repaired,
    )


def _of_a_broken_one(failure: Graded, found: Attribution, done: Trajectory) -> Judged:
    """A trajectory that ended without an answer although all of its calls could be read."""
    at = len(done.calls)
    failed = next((step for step in reversed(done.steps) if isinstance(step, ToolCall)), None)
    if failed is not None and failed.failed:  # a well-formed call that the tool could not serve
        content = replace(
            found,
            content_deficit=1.0,
            form_deficit=0.0,
            p_content=SURE,
            verdict="content",
            repaired=None,
            repaired_reward=failure.score.value,
        )
        return Judged(content, f"call {at}: the tool {failed.name} failed with {failed.result[:80]}")
    return Judged(_by_form(failure, found, None), f"call {at}: the agent {done.failure}" if at else "")


def _wrong_content(failure: Graded, done: Trajectory) -> tuple[int, str]:
    """The call, from 1, whose content is wrong: one whose tool gave nothing of the answer, else the last."""
    reference, calls = failure.example.reference, len(done.calls)
    if done.tools_used and reference and not any(reference in step.result for step in done.tools_used):
        before = next(i for i, step in enumerate(done.steps) if isinstance(step, ToolCall))
        asked = sum(isinstance(step, ModelCall) for step in done.steps[:before])
        tool = done.tools_used[0]
        return asked, f"{tool.name}({tool.arguments[:80]}) gave nothing of the right answer"
    return calls, "the answer is wrong"
