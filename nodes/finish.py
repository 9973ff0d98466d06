"""finish: the test split, once, for the untouched start and for the final candidate; then the result folder."""

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.errors import RewardError, TooLongError
from nslora.tools.rewards.score import Graded
from nslora.tools.workspace.report import Evaluated, RunFacts, compare_on_test, write_result
from nslora.tools.workspace.workspace import Workspace


def finish(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Look at the test split, and write the result."""
    return step(state, workspace_for(runtime, "finish"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Answer the test split with the start and with the best candidate, and write the folder `result`."""
    start, final = state["start"], state["best"]
    try:
        base, base_cost = on_test(workspace, start, "test replies of the base")
        result, result_cost = base, Evaluated()
        if final != start:
            result, result_cost = on_test(workspace, final, "test replies of the result")
    except (RewardError, TooLongError) as error:
        adapter = f"the adapter {workspace.adapters.path(final['adapter'])}" if final["adapter"] else "no adapter"
        prompt = f"the prompt {workspace.prompts.folder / final['prompt']}.md"
        raise type(error)(f"{error} Untested, but kept: {adapter}, {prompt}.") from error
    measured, wall_s = state["start_measured"], workspace.clock.seconds
    facts = RunFacts(
        # An overruled decision ends the run without a stop.
        stop=state["stop"] or (decision.get("reason", "") if (decision := state["decision"]) else ""),
        rounds=[dict(record) for record in state["rounds"]],
        start=start,
        final=final,
        # Beside the test's, so that the gap between validation and test can be seen.
        validation={
            "base": {"reward": measured["reward"] if measured else None},
            "result": {"reward": state["best_reward"]},
        },
        test=compare_on_test(base, result, workspace.task.reward),
        base=base,
        result=result,
        wall_s=state["wall_s"] + wall_s,
        start_cost=Evaluated.of(measured),
        start_evaluation=measured["key"] if measured else None,
        test_cost=base_cost + result_cost,
    )
    write_result(workspace, facts)
    return {"status": "finished", "wall_s": wall_s}


def on_test(workspace: Workspace, candidate: Candidate, what: str) -> tuple[list[Graded], Evaluated]:
    """Every test question answered by one candidate, graded, and what that cost. what: of the progress."""
    prompt, rows = workspace.prompts.get(candidate["prompt"]), workspace.task.test
    graded, replies = workspace.graded_replies(prompt, candidate["adapter"], rows, progress(workspace, what))
    flop = workspace.flop_rates.forward * replies.forward_tokens
    return graded, Evaluated(replies.tokens, replies.cached, flop)
