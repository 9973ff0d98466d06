"""monitor: do what the verdict says, bring the signal up to date, and say whether to stop."""

import math

from langgraph.runtime import Runtime

from nslora.graph.state import (
    AdaptationContext,
    AdaptationState,
    Changes,
    Measured,
    Proposal,
    RemadePool,
    RoundRecord,
    Verdict,
)
from nslora.nodes.shared.cost import work_of_round
from nslora.nodes.shared.runtime import workspace_for
from nslora.nodes.shared.verdict import verdict_on
from nslora.tools.editor.call_log import lines_in
from nslora.tools.errors import RunError
from nslora.tools.evaluation.acceptance import best_candidate, fewest_wins
from nslora.tools.evaluation.paired_tests import TIE
from nslora.tools.files import write_jsonl
from nslora.tools.router.monitoring_signal import Update, signal_of
from nslora.tools.router.reasons import why_stop
from nslora.tools.workspace.settings import RunSettings
from nslora.tools.workspace.workspace import Workspace


def monitor(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Keep or drop the proposed candidate."""
    return step(state, workspace_for(runtime, "monitor"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Keep or drop the proposal, and choose the best so far. In round 0 the start is kept without a verdict.

    Raises RunError if a person keeps an update that failed.
    """
    measured, proposal, kept = state["measured"], state["proposal"], state["kept_measured"]
    settings, rounds, changes = workspace.settings, list(state["rounds"]), Changes()
    if proposal is not None:
        # A state of version 0.1.0 holds none.
        verdict = state.get("verdict") or verdict_on(state, workspace)
        record = round_record(state, proposal, measured, verdict, workspace)
        rounds.append(record)
        record["signal"] = signal_of([Update.of(each) for each in rounds], settings.signal)
        write_jsonl(workspace.folder / "decisions.jsonl", rounds)
        changes = {
            "round": state["round"] + 1,
            "proposal": None,
            "measured": None,
            "verdict": None,
            "decision": None,
            "rounds": [record],
            "signal": record["signal"],
            "remade": remade_after(state, proposal, verdict),
        }
        if measured is not None and proposal["candidate"] is not None:
            if verdict["kept"]:
                kept = measured
                changes |= {"kept": proposal["candidate"], "kept_measured": measured}
            changes |= final_choice(state, rounds, workspace)
        elif verdict["kept"]:
            raise RunError(
                f"The verdict on round {record['round']} says kept, but its update failed ({proposal['error']}): "
                "write a verdict with kept False, or fork the round."
            )
    elif measured is not None:
        kept = measured
        changes = {"start_measured": measured, "kept_measured": measured, "best_reward": measured["reward"]}
        changes["signal"] = signal_of([], settings.signal)
    if changes and kept is not None:
        changes["stop"] = stop_reason(kept, rounds, changes.get("round", 0), settings)
    return changes


def remade_after(state: AdaptationState, proposal: Proposal, verdict: Verdict) -> RemadePool | None:
    """The remade data that the next training job learns from: that of a new edit, dropped or not.

    A dropped edit does not take the place of the kept one, whose data still waits.
    """
    pool, candidate = state["remade"], proposal["candidate"]
    if candidate is None or not proposal["new_rows"]:
        return pool
    if not verdict["kept"] and pool and pool["waiting"] and pool["prompt"] == state["kept"]["prompt"]:
        return pool
    return RemadePool(prompt=candidate["prompt"], rows=proposal["new_rows"], waiting=True)


def final_choice(state: AdaptationState, rounds: list[RoundRecord], workspace: Workspace) -> Changes:
    """The candidate that the run would end with, of all that were measured; the start if none is better by the test.

    The choice goes by reward, among the candidates under which the regression set did not fall. It is made anew after
    each round, since every further candidate is one more chance to seem better. A candidate that a person kept against
    the test takes the place of the start, and one that a person dropped is no candidate.
    """
    start, settings = state["start_measured"], workspace.settings.keep
    measured = [record for record in rounds if record["evaluation"] and record["candidate"]]
    if start is None or not measured:
        return {}
    base, key, reward = state["start"], start["key"], start["reward"]
    by_hand = [i for i, each in enumerate(measured) if each.get("overruled") and each["kept"]]
    if by_hand:
        last, measured = measured[by_hand[-1]], measured[by_hand[-1] + 1 :]
        base, key, reward = last["candidate"] or base, str(last["evaluation"]), last["reward_after"] or 0.0
    measured = [each for each in measured if not each.get("overruled")]
    gains = [workspace.evaluations.gains(str(record["evaluation"]), over=key) for record in measured]
    least = -settings.anchor_tolerance - TIE
    rewards = [
        (each["reward_after"] or 0.0) if each["numbers"].get("anchor_gain", 0.0) >= least else -math.inf
        for each in measured
    ]
    best = best_candidate(gains, rewards, reward, settings=settings) if measured else None
    if best is None:
        return {"best": base, "best_reward": reward}
    return {"best": measured[best]["candidate"], "best_reward": rewards[best]}


def stop_reason(kept: Measured, rounds: list[RoundRecord], rounds_done: int, settings: RunSettings) -> str:
    """Why the run ends here, "" if it goes on."""
    level = settings.keep.level if any(each["kept"] for each in rounds) else settings.keep.from_start
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
    state: AdaptationState, proposal: Proposal, measured: Measured | None, verdict: Verdict, workspace: Workspace
) -> RoundRecord:
    """The summary of the round that ends here; its signal is added later."""
    kept, decision = state["kept_measured"], state["decision"]
    record: RoundRecord = {
        "round": state["round"] + 1,
        "action": proposal["kind"],
        "reason": decision.get("reason", "") if decision else "",
        "kept": verdict["kept"],
        "verdict": verdict["reason"],
        "error": proposal["error"],
        "candidate": proposal["candidate"],
        "evaluation": measured["key"] if measured else None,
        "reward_before": kept["reward"] if kept else 0.0,
        "reward_after": measured["reward"] if measured else None,
        "potential_before": kept["potential"] if kept else 0.0,
        "potential_after": measured["potential"] if measured else None,
        "numbers": dict(verdict["numbers"]),
        "demand": decision.get("demand", {}) if decision else {},
        "signal": {},
        **work_of_round(proposal, measured),  # type: ignore[typeddict-item]  # a Work holds no "person"
        "editor_lines": lines_in(workspace.folder / "editor.jsonl"),
    }
    if measured and measured["cached_replies"]:
        record["cached_replies"] = measured["cached_replies"]
    if "person" in proposal:
        record["person"] = proposal["person"]
    if verdict["kept"] != verdict["by_test"]:
        record["overruled"] = True
        record["verdict"] = f"{'kept' if verdict['kept'] else 'dropped'} by hand ({verdict['reason']})"
    return record
