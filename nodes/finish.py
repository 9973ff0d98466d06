"""finish: the test split, once, for the untouched start and for the final candidate; then the result folder."""

from typing import Any

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.errors import RewardError, TooLongError
from nslora.tools.evaluation.rollouts import ask, grade
from nslora.tools.policy import OnProgress
from nslora.tools.rewards.score import Graded
from nslora.tools.workspace.report import RunFacts, compare_on_test, question_scores, write_result
from nslora.tools.workspace.workspace import Workspace


def finish(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Look at the test split, and write the result."""
    return step(state, workspace_for(runtime, "finish"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Choose by validation reward among all candidates, look at the test split, write the artefacts."""
    final = state["best"]
    try:
        base = on_test(workspace, state["start"], progress(workspace, "test replies of the base"))
        result = (
            base
            if final == state["start"]
            else on_test(workspace, final, progress(workspace, "test replies of the result"))
        )
    except (RewardError, TooLongError) as error:
        raise type(error)(f"{error} Untested, but kept: {chosen(workspace, final)}.") from error
    wall_s = workspace.clock.seconds
    facts = RunFacts(
        stop=state["stop"],
        rounds=[dict(record) for record in state["rounds"]],
        start=state["start"],
        final=final,
        validation=validation_numbers(state),
        test=compare_on_test(base, result),
        scores=[*question_scores("base", base), *question_scores("result", result)],
        wall_s=state["wall_s"] + wall_s,
        start_flop=state["start_measured"]["flop"] if state["start_measured"] else 0.0,
    )
    write_result(workspace, facts)
    return {"status": "finished", "wall_s": wall_s}


def chosen(workspace: Workspace, final: Candidate) -> str:
    """Where the parts of the run's choice lie, for whoever cannot let it finish."""
    adapter = f"the adapter {workspace.adapters.path(final['adapter'])}" if final["adapter"] else "no adapter"
    return f"{adapter}, the prompt {workspace.prompts.folder / final['prompt']}.md"


def on_test(workspace: Workspace, candidate: Candidate, on_progress: OnProgress) -> list[Graded]:
    """Every test question answered and graded under one candidate."""
    replies = ask(
        workspace.policy,
        workspace.replies,
        workspace.prompts.get(candidate["prompt"]),
        [row.question for row in workspace.task.test],
        adapter=candidate["adapter"],
        max_new_tokens=workspace.task.max_new_tokens,
        on_progress=on_progress,
    )
    return grade(workspace.task.reward, workspace.task.test, replies.texts)


def validation_numbers(state: AdaptationState) -> dict[str, Any]:
    """Validation reward of the start and of the final choice, so that the gap to test can be seen."""
    start = state["start_measured"]
    return {"base": {"reward": start["reward"] if start else None}, "result": {"reward": state["best_reward"]}}
