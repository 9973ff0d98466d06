"""Keep or drop: the paired test of a proposal against what is kept."""

from nslora.graph.state import AdaptationState, Verdict
from nslora.tools.evaluation.acceptance import KeepDecision, compare
from nslora.tools.workspace.workspace import Workspace


def verdict_on(state: AdaptationState, workspace: Workspace) -> Verdict:
    """The verdict on the proposal that was measured."""
    found = _judge(state, workspace)
    return Verdict(kept=found.kept, reason=found.reason, numbers=dict(found.numbers), by_test=found.kept)


def _judge(state: AdaptationState, workspace: Workspace) -> KeepDecision:
    """The paired test, row by row on validation."""
    kept, measured, proposal = state["kept_measured"], state["measured"], state["proposal"]
    if proposal is not None and proposal["error"]:
        return KeepDecision(False, f"failed: {proposal['error']}", {})
    if kept is None or measured is None:
        return KeepDecision(False, "dropped: nothing was measured", {})
    before, after = workspace.evaluations.load(kept["key"]), workspace.evaluations.load(measured["key"])
    start = workspace.evaluations.load(state["start_measured"]["key"]) if state["start_measured"] else before
    return compare(before, after, start, settings=workspace.settings.keep)
