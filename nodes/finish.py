"""finish: the test split, once, for the untouched start and for the final candidate; then the result folder."""

from typing import Any

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes
from nslora.nodes.shared.runtime import stream_progress, workspace_for
from nslora.tools.errors import RewardError, TooLongError
from nslora.tools.evaluation.rollouts import ask, grade
from nslora.tools.policy import OnProgress
from nslora.tools.rewards.score import Graded
from nslora.tools.workspace.report import Evaluated, RunFacts, compare_on_test, question_scores, write_result
from nslora.tools.workspace.workspace import Workspace


def finish(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Choose by validation reward among all candidates, look at the test split, write the artefacts."""
    workspace = workspace_for(runtime)
    final = state["best"]
    try:
        base, base_cost = on_test(workspace, state["start"], stream_progress("finish", "test replies of the base"))
        result, result_cost = (
            (base, Evaluated())
            if final == state["start"]
            else on_test(workspace, final, stream_progress("finish", "test replies of the result"))
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
        start_cost=start_cost(state),
        test_cost=Evaluated(
            base_cost.generated_tokens + result_cost.generated_tokens,
            base_cost.cached_replies + result_cost.cached_replies,
            base_cost.flop + result_cost.flop,
        ),
    )
    write_result(workspace, facts)
    return {"status": "finished", "wall_s": wall_s}


def chosen(workspace: Workspace, final: Candidate) -> str:
    """Where the parts of the run's choice lie, for whoever cannot let it finish."""
    adapter = f"the adapter {workspace.adapters.path(final['adapter'])}" if final["adapter"] else "no adapter"
    return f"{adapter}, the prompt {workspace.prompts.folder / final['prompt']}.md"


def on_test(workspace: Workspace, candidate: Candidate, on_progress: OnProgress) -> tuple[list[Graded], Evaluated]:
    """Every test question answered and graded under one candidate, and what that cost."""
    replies = ask(
        workspace.policy,
        workspace.replies,
        workspace.prompts.get(candidate["prompt"]),
        [row.question for row in workspace.task.test],
        adapter=candidate["adapter"],
        max_new_tokens=workspace.task.max_new_tokens,
        on_progress=on_progress,
    )
    cost = Evaluated(replies.tokens, replies.cached, workspace.flop_rates.forward * replies.forward_tokens)
    return grade(workspace.task.reward, workspace.task.test, replies.texts), cost


def start_cost(state: AdaptationState) -> Evaluated:
    """What the evaluation before the first round cost."""
    start = state["start_measured"]
    return Evaluated(start["generated_tokens"], start["cached_replies"], start["flop"]) if start else Evaluated()


def validation_numbers(state: AdaptationState) -> dict[str, Any]:
    """Validation reward of the start and of the final choice, so that the gap to test can be seen."""
    start = state["start_measured"]
    return {"base": {"reward": start["reward"] if start else None}, "result": {"reward": state["best_reward"]}}
