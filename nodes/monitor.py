"""monitor: keep or drop what was proposed, bring the signal up to date, and say whether to stop."""

from langgraph.runtime import Runtime

from nslora.graph.state import (
    AdaptationContext,
    AdaptationState,
    Changes,
    Measured,
    Proposal,
    RemadePool,
    RoundRecord,
)
from nslora.nodes.shared.rounds import history
from nslora.nodes.shared.runtime import workspace_for
from nslora.tools.editor.call_log import lines_in
from nslora.tools.evaluation.acceptance import KeepDecision, fewest_wins, keep_or_drop
from nslora.tools.evaluation.paired_tests import TIE, p_values_of_several
from nslora.tools.evaluation.records import Row, read_evaluation
from nslora.tools.files import write_jsonl
from nslora.tools.router.monitoring_signal import progress_of
from nslora.tools.schema import KINDS
from nslora.tools.workspace.workspace import Workspace


def monitor(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Judge by validation alone. In round 0 there is nothing to judge: the start is what is kept."""
    workspace = workspace_for(runtime)
    measured, proposal = state["measured"], state["proposal"]
    if proposal is None:
        if measured is None:
            return {}
        changes: Changes = {"start_measured": measured, "kept_measured": measured, "best_reward": measured["reward"]}
        return {**changes, "signal": signal_of([], workspace), "stop": why_stop(workspace, measured, 0, changed=False)}
    verdict = judge(state, workspace)
    record = round_record(state, proposal, measured, verdict, workspace)
    rounds = [*state["rounds"], record]
    record["signal"] = signal_of(rounds, workspace)
    write_jsonl(workspace.folder / "decisions.jsonl", rounds)
    changes = {
        "round": state["round"] + 1,
        "proposal": None,
        "measured": None,
        "decision": None,
        "rounds": [record],
        "signal": record["signal"],
        "remade": remade_after(state, proposal, verdict),
    }
    kept_measured = state["kept_measured"]
    if measured is not None and proposal["candidate"] is not None:
        if verdict.kept:
            kept_measured = measured
            changes |= {"kept": proposal["candidate"], "kept_measured": measured}
        changes |= final_choice(state, rounds, workspace)
    if kept_measured is not None:
        changes["stop"] = why_stop(
            workspace, kept_measured, state["round"] + 1, changed=any(each["kept"] for each in rounds)
        )
    return changes


def remade_after(state: AdaptationState, proposal: Proposal, verdict: KeepDecision) -> RemadePool | None:
    """The remade data that the next training job learns from: that of a new edit, dropped or not.

    A dropped edit does not take the place of the kept one, whose data still waits.
    """
    pool, candidate = state["remade"], proposal["candidate"]
    if candidate is None or not proposal["new_rows"]:
        return pool
    if not verdict.kept and pool and pool["waiting"] and pool["prompt"] == state["kept"]["prompt"]:
        return pool
    return RemadePool(prompt=candidate["prompt"], rows=proposal["new_rows"], waiting=True)


def judge(state: AdaptationState, workspace: Workspace) -> KeepDecision:
    """The paired test of the proposal against what is kept, row by row on validation."""
    kept, measured, proposal = state["kept_measured"], state["measured"], state["proposal"]
    if proposal is not None and proposal["error"]:
        return KeepDecision(False, f"failed: {proposal['error']}", {})
    if kept is None or measured is None:
        return KeepDecision(False, "dropped: nothing was measured", {})
    old, new = rows_of(workspace, kept["key"], "validation"), rows_of(workspace, measured["key"], "validation")
    ids = sorted(old)
    regression_old, regression_new = (
        best_regression_rows(state, kept, workspace),
        rows_of(workspace, measured["key"], "anchor"),
    )
    regression_ids = sorted(regression_old.keys() & regression_new.keys())
    return keep_or_drop(
        [old[i].value for i in ids],
        [new[i].value for i in ids],
        [old[i].repaired_reward for i in ids],
        [new[i].repaired_reward for i in ids],
        settings=workspace.settings.keep,
        regression_old=[regression_old[i].value for i in regression_ids] or None,
        regression_new=[regression_new[i].value for i in regression_ids] or None,
    )


def best_regression_rows(state: AdaptationState, kept: Measured, workspace: Workspace) -> dict[str, Row]:
    """The regression rows of what is kept or of the start, whichever did better: small falls must not add up."""
    measured = [each for each in (kept, state["start_measured"]) if each is not None]
    return max(
        (rows_of(workspace, each["key"], "anchor") for each in measured),
        key=lambda rows: sum(row.value for row in rows.values()),
    )


def final_choice(state: AdaptationState, rounds: list[RoundRecord], workspace: Workspace) -> Changes:
    """The candidate that the run would end with, of all that were measured; the start where none is better by the test.

    A keep is not for ever: the choice goes by reward, among those that spared the regression set, and is made anew
    after each round, since every look at another candidate is one more chance to seem better.
    """
    start, settings = state["start_measured"], workspace.settings.keep
    measured = [record for record in rounds if record["evaluation"] and record["candidate"]]
    if start is None or not measured:
        return {}
    gains = [gains_of(workspace, start["key"], str(record["evaluation"])) for record in measured]
    p_values = p_values_of_several(gains, samples=settings.samples, seed=settings.seed)
    choice: Changes = {"best": state["start"], "best_reward": start["reward"]}
    for record, p_value in zip(measured, p_values, strict=True):
        spared = record["numbers"].get("anchor_gain", 0.0) >= -settings.anchor_tolerance - TIE
        reward = record["reward_after"]
        if p_value <= settings.result_level and spared and reward is not None and reward > choice["best_reward"] + TIE:
            choice = {"best": record["candidate"], "best_reward": reward}
    return choice


def gains_of(workspace: Workspace, start: str, key: str) -> list[float]:
    """Reward less the start's on each validation row, in one order; remembered, since evaluations never change."""
    if (start, key) not in workspace.gains:
        old, new = rows_of(workspace, start, "validation"), rows_of(workspace, key, "validation")
        workspace.gains[start, key] = [new[i].value - old[i].value for i in sorted(old)]
    return workspace.gains[start, key]


def rows_of(workspace: Workspace, key: str, split: str) -> dict[str, Row]:
    rows, _ = read_evaluation(workspace.evaluations / f"{key}.jsonl")
    return {row.id: row for row in rows if row.split == split}


def signal_of(rounds: list[RoundRecord], workspace: Workspace) -> dict[str, dict[str, float]]:
    """The unified monitoring signal of each kind, as plain numbers."""
    states = {kind: progress_of(kind, history(rounds), workspace.settings.signal) for kind in KINDS}
    return {
        kind: {"value": each.value, "saturated": float(each.saturated), **each.evidence}
        for kind, each in states.items()
    }


def why_stop(workspace: Workspace, kept: Measured, rounds_done: int, *, changed: bool) -> str:
    """A reason to end the run that needs no classifier, or "". changed: something was kept since the start."""
    if kept["reward"] >= workspace.settings.target:
        return f"target reached: validation reward {kept['reward']:.3f}, wanted {workspace.settings.target:.3f}"
    if kept["failures"] == 0:
        return "nothing left to mend on validation"
    level = workspace.settings.keep.level if changed else workspace.settings.keep.from_start
    if kept["failures"] < (needed := fewest_wins(level)):
        return (
            f"what is left, {kept['failures']} of validation's rows, is less than it can tell from chance "
            f"({needed} rows at level {level:g})"
        )
    if rounds_done >= workspace.settings.max_rounds:
        return f"round limit of {workspace.settings.max_rounds} reached"
    return ""


def round_record(
    state: AdaptationState, proposal: Proposal, measured: Measured | None, verdict: KeepDecision, workspace: Workspace
) -> RoundRecord:
    """The summary of the round that ends here."""
    kept, decision = state["kept_measured"], state["decision"]
    spent_s = proposal["wall_s"] + (measured["wall_s"] if measured else 0.0)
    record = RoundRecord(
        round=state["round"] + 1,
        action=proposal["kind"],
        reason=decision["reason"] if decision else "",
        kept=verdict.kept,
        verdict=verdict.reason,
        error=proposal["error"],
        candidate=proposal["candidate"],
        evaluation=measured["key"] if measured else None,
        reward_before=kept["reward"] if kept else 0.0,
        reward_after=measured["reward"] if measured else None,
        potential_before=kept["potential"] if kept else 0.0,
        potential_after=measured["potential"] if measured else None,
        numbers=dict(verdict.numbers),
        demand=decision["demand"] if decision else {},
        signal={},
        wall_s=spent_s,
        trained_tokens=proposal["trained_tokens"],
        generated_tokens=proposal["generated_tokens"] + (measured["generated_tokens"] if measured else 0),
        flop=proposal["flop"] + (measured["flop"] if measured else 0.0),
        editor=proposal["editor"],
        epoch_losses_nats=proposal["epoch_losses_nats"],
        grad_norms=proposal["grad_norms"],
        new_rows=proposal["new_rows"],
        note=proposal["note"],
        editor_lines=lines_in(workspace.folder / "editor.jsonl"),
    )
    if measured and measured["cached_replies"]:
        record["cached_replies"] = measured["cached_replies"]
    if "person" in proposal:
        record["person"] = proposal["person"]
    return record
