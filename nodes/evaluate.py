"""evaluate: measure the proposed candidate (the start, in round 0) on validation and a sample of train; judge it."""

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Measured
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.cost import CostLedger, Steps
from nslora.nodes.shared.rounds import first_state_of, is_empty
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.nodes.shared.verdict import verdict_on
from nslora.tools.errors import BudgetError, TooLongError
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.evaluation.records import Evaluation
from nslora.tools.evaluation.rollouts import attributed_anew
from nslora.tools.rewards.score import Graded, check_means
from nslora.tools.workspace.measuring import evaluated, layouts_known
from nslora.tools.workspace.workspace import Workspace


def evaluate(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Measure the proposed candidate, or the start in round 0, and say whether to keep it."""
    return step(state, workspace_for(runtime, "evaluate"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Write the rows and failures to a file, and their summary and the verdict into the state.

    A state without keys becomes a first state.
    """
    begun: Changes = {}
    if is_empty(state):
        begun = {key: value for key, value in first_state_of(workspace).items() if key not in state}
        state = {**state, **begun}  # type: ignore[typeddict-item]
    changes = {**begun, **measure(state, workspace)}
    if state["proposal"] is not None:
        measured: AdaptationState = {**state, **changes}  # type: ignore[typeddict-item]
        changes["verdict"] = verdict_on(measured, workspace)
    return changes


def measure(state: AdaptationState, workspace: Workspace) -> Changes:
    """The summary of the evaluation; a proposal that cannot be measured becomes one that failed."""
    proposal, kept = state["proposal"], state["kept_measured"]
    candidate = proposal["candidate"] if proposal else state["start"]
    if candidate is None:
        return {"measured": None}
    ledger, budget, before = CostLedger(workspace), Budget(state, workspace), workspace.evaluations.of(kept)
    # The start is measured without a limit: a run that knows nothing of its model has nothing to end with.
    until = budget.deadline(to_be_evaluated=False) if proposal else None
    steps = Steps(progress(workspace, "replies", until))
    try:
        evaluation, cost = evaluated(workspace, candidate, state["round"], steps, before=before)
    except (BudgetError, TooLongError) as error:
        if proposal is None:
            raise
        flop = proposal["flop"] + broken_off_flop(steps, candidate, budget)
        failed = {**proposal, "candidate": None, "error": str(error), "flop": flop}
        return {"measured": None, "wall_s": ledger.wall_s, "proposal": failed}
    ledger.generate(cost.tokens, cost.forward_tokens)
    # The classifier knows the same layouts for both: more layouts alone would raise the repairable reward of one side.
    good = layouts_known(workspace, [*before.passing, *evaluation.passing])
    changes: Changes = {}
    if kept is not None:
        before = stored_anew(workspace, before, good)
        changes["kept_measured"] = {**kept, "key": before.key, "potential": before.repairable_reward}
    measured = summary(stored_anew(workspace, evaluation, good), ledger, cost.cached)
    return {**changes, "measured": measured, "wall_s": measured["wall_s"]}


def stored_anew(workspace: Workspace, evaluation: Evaluation, good: list[Graded]) -> Evaluation:
    """The evaluation with its failures attributed under the layouts of `good`, in a file of its own if they differ."""
    anew = attributed_anew(evaluation, workspace.task, workspace.examples, good)
    return evaluation if anew is evaluation else workspace.evaluations.write(anew)


def broken_off_flop(steps: Steps, candidate: Candidate, budget: Budget) -> float:
    """Most model FLOPs of an evaluation that ended before its end; replies that were known count as in a whole one."""
    if not steps.total:
        return 0.0
    workspace = budget.workspace
    share = 1.0 - (steps.total - steps.done) / len(workspace.measured_rows(budget.state["round"]))
    return share * budget.measuring_flop(workspace.prompts.get(candidate["prompt"]))


def summary(evaluation: Evaluation, ledger: CostLedger, cached_replies: int) -> Measured:
    """Means over the validation rows, and over the train rows of the sample."""
    rows = list(evaluation.of("validation").values())
    losses = [row.loss_nats for row in rows if row.loss_nats is not None]
    return Measured(
        key=evaluation.key,
        reward=mean([row.value for row in rows]),
        potential=evaluation.repairable_reward,
        all_checks=mean([float(row.passed) for row in rows]),
        checks=check_means([row.checks for row in rows]),
        loss_nats=mean(losses) if losses else None,
        failures=sum(not row.passed for row in rows),
        train_reward=mean([row.value for row in evaluation.of("train").values()]),
        wall_s=ledger.wall_s,
        generated_tokens=ledger.generated_tokens,
        cached_replies=cached_replies,
        flop=ledger.flop,
    )
