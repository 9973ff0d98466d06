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
from nslora.nodes.shared.cost import work_of_round
from nslora.nodes.shared.rounds import history
from nslora.nodes.shared.runtime import workspace_for
from nslora.tools.editor.call_log import lines_in
from nslora.tools.evaluation.acceptance import KeepDecision, fewest_wins, keep_or_drop
from nslora.tools.evaluation.paired_tests import TIE, p_values_of_several
from nslora.tools.files import write_jsonl
from nslora.tools.router.monitoring_signal import signal_of
from nslora.tools.router.reasons import why_stop
from nslora.tools.workspace.workspace import Workspace


def monitor(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Keep or drop the proposed candidate."""
    return step(state, workspace_for(runtime, "monitor"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Judge by validation alone. In round 0 there is nothing to judge: the start is what is kept."""
    measured, proposal = state["measured"], state["proposal"]
    if proposal is None:
        if measured is None:
            return {}
        changes: Changes = {"start_measured": measured, "kept_measured": measured, "best_reward": measured["reward"]}
        return {
            **changes,
            "signal": signal_of([], workspace.settings.signal),
            "stop": stop_reason(workspace, measured, 0, changed=False),
        }
    verdict = judge(state, workspace)
    record = round_record(state, proposal, measured, verdict, workspace)
    rounds = [*state["rounds"], record]
    record["signal"] = signal_of(history(rounds), workspace.settings.signal)
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
        changes["stop"] = stop_reason(
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
    before, after = workspace.evaluations.load(kept["key"]), workspace.evaluations.load(measured["key"])
    old, new = before.of("validation"), after.of("validation")
    ids = sorted(old)
    start = workspace.evaluations.load(state["start_measured"]["key"]) if state["start_measured"] else before
    # Small falls must not add up: the candidate is held against the better of what is kept and the start.
    regression_old = max(
        (before.of("anchor"), start.of("anchor")), key=lambda rows: sum(row.value for row in rows.values())
    )
    regression_new = after.of("anchor")
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


def final_choice(state: AdaptationState, rounds: list[RoundRecord], workspace: Workspace) -> Changes:
    """The candidate that the run would end with, of all that were measured; the start where none is better by the test.

    A keep is not for ever: the choice goes by reward, among those that spared the regression set, and is made anew
    after each round, since every look at another candidate is one more chance to seem better.
    """
    start, settings = state["start_measured"], workspace.settings.keep
    measured = [record for record in rounds if record["evaluation"] and record["candidate"]]
    if start is None or not measured:
        return {}
    gains = [workspace.evaluations.gains(str(record["evaluation"]), over=start["key"]) for record in measured]
    p_values = p_values_of_several(gains, samples=settings.samples, seed=settings.seed)
    choice: Changes = {"best": state["start"], "best_reward": start["reward"]}
    for record, p_value in zip(measured, p_values, strict=True):
        spared = record["numbers"].get("anchor_gain", 0.0) >= -settings.anchor_tolerance - TIE
        reward = record["reward_after"]
        if p_value <= settings.result_level and spared and reward is not None and reward > choice["best_reward"] + TIE:
            choice = {"best": record["candidate"], "best_reward": reward}
    return choice


def stop_reason(workspace: Workspace, kept: Measured, rounds_done: int, *, changed: bool) -> str:
    """Why the run ends here, "" if it goes on. changed: whether an update was kept since the start."""
    settings = workspace.settings
    level = settings.keep.level if changed else settings.keep.from_start
    return why_stop(
        reward=kept["reward"],
        target=settings.target,
        failures=kept["failures"],
        rounds_done=rounds_done,
        max_rounds=settings.max_rounds,
        fewest_failures=fewest_wins(level),
        level=level,
    )


def round_record(
    state: AdaptationState, proposal: Proposal, measured: Measured | None, verdict: KeepDecision, workspace: Workspace
) -> RoundRecord:
    """The summary of the round that ends here; its signal is added later."""
    kept, decision = state["kept_measured"], state["decision"]
    record: RoundRecord = {
        "round": state["round"] + 1,
        "action": proposal["kind"],
        "reason": decision["reason"] if decision else "",
        "kept": verdict.kept,
        "verdict": verdict.reason,
        "error": proposal["error"],
        "candidate": proposal["candidate"],
        "evaluation": measured["key"] if measured else None,
        "reward_before": kept["reward"] if kept else 0.0,
        "reward_after": measured["reward"] if measured else None,
        "potential_before": kept["potential"] if kept else 0.0,
        "potential_after": measured["potential"] if measured else None,
        "numbers": dict(verdict.numbers),
        "demand": decision["demand"] if decision else {},
        "signal": {},
        **work_of_round(proposal, measured),  # type: ignore[typeddict-item]  # a Work holds no "person"
        "editor_lines": lines_in(workspace.folder / "editor.jsonl"),
    }
    if "person" in proposal:
        record["person"] = proposal["person"]
    return record
