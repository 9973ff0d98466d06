"""All wording of reasons: why a run stops, and why a kind of update goes or does not go."""

from collections.abc import Mapping, Sequence

from nslora.tools.router.expected_gain import StrategySettings
from nslora.tools.router.inputs import RouterInput
from nslora.tools.schema import KINDS, Kind

WORDS: Mapping[str, str] = {"lora": "weights", "textgrad": "prompt"}


def why_stop(
    *,
    reward: float,
    target: float,
    failures: int,
    rounds_done: int,
    max_rounds: int,
    fewest_failures: int = 0,
    level: float = 0.0,
) -> str:
    """Why a run ends before any update is chosen; "" if it goes on.

    Args:
        reward: Of the candidate in force, on validation.
        target: Reward at which the run ends.
        failures: Validation rows without full reward.
        rounds_done: Updates so far.
        max_rounds: Most updates.
        fewest_failures: Rows that the test of a gain needs at `level`; 0 to leave this rule out.
        level: Of the test.
    """
    if reward >= target:
        return f"target reached: validation reward {reward:.3f}, wanted {target:.3f}"
    if failures == 0:
        return f"no failure is left on validation (reward {reward:.3f})"
    if failures < fewest_failures:
        return (
            f"too few failures are left on validation: {failures}, and the test of a gain needs {fewest_failures} "
            f"rows (level {level:g})"
        )
    if rounds_done >= max_rounds:
        return f"round limit of {max_rounds} reached"
    return ""


def need_words(kind: Kind, router_input: RouterInput) -> str:
    """How many failures need what this kind of update can bring."""
    need = router_input.need
    if need is None:
        return "No failure"
    if kind == "lora" and router_input.remade_waiting > 0:
        return (
            f"{router_input.remade_waiting} verified remade rows wait, from which weights learn content and form alike"
        )
    share = need.content + need.both if kind == "lora" else need.form + need.both
    lacking = "content" if kind == "lora" else "form"
    return f"{round(share * need.failures)} of {need.failures} failures need {lacking}"


def signal_words(router_input: RouterInput, kind: Kind) -> str:
    """How much progress this kind still makes."""
    state = router_input.progress[kind]
    if state.evidence.get("given_up"):
        return closed_words(router_input, kind)
    if (drops := state.evidence.get("drops")) is not None and not state.saturated and state.evidence["tries"]:
        return f"{_title(kind)} is open" + (f", {drops:.0f} dropped since an update was kept" if drops else "")
    if state.saturated:
        return f"{_title(kind)} is saturated (progress {state.value:.2f})"
    if not state.evidence.get("tries", 0.0):
        return f"{_title(kind)} is untried"
    if state.evidence.get("ground_moved", 0.0):
        return f"{_title(kind)} is open again: the candidate in force or the rows to train on have changed"
    drop = state.evidence.get("relative_loss_drop")
    if state.evidence.get("low_in_a_row", 0.0):
        gain = state.evidence.get("gain", 0.0)
        return f"{_title(kind)} brought little last time (gain {gain:+.3f}) but is not saturated"
    if kind == "lora" and drop is not None:
        return f"{_title(kind)} still progresses (loss {-drop:+.0%} last epoch)"
    return f"{_title(kind)} still progresses (last gain {state.evidence.get('gain', 0.0):+.3f})"


def closed_words(router_input: RouterInput, kind: Kind) -> str:
    """Why this kind is closed."""
    if router_input.progress[kind].evidence.get("given_up"):
        return f"{_title(kind)} is given up for this run, since the editor failed too often or reached its cap"
    if router_input.progress[kind].evidence.get("no_material"):
        return f"{_title(kind)} has no failure on train to learn from"
    if router_input.progress[kind].evidence.get("in_vain"):
        return (
            f"{_title(kind)} was tried from the start in vain, and is not tried again before an update is kept "
            "(routing.tries_from_start)"
        )
    if router_input.progress[kind].evidence.get("dropped"):
        return f"{_title(kind)} was dropped too often since an update was kept (routing.drops_without_signal)"
    return f"{_title(kind)} is saturated"


def why_nothing_goes(router_input: RouterInput) -> str:
    """Why no kind of update is chosen, though no stop rule holds."""
    saturated = [kind for kind in KINDS if router_input.progress[kind].saturated]
    for kind in saturated:
        if router_input.progress[kind].evidence.get("given_up"):
            return f"{closed_words(router_input, kind)}, and the other kind has nothing more to bring."
    told = [
        each
        for kind in saturated
        for each in ("no_material", "in_vain", "dropped")
        if router_input.progress[kind].evidence.get(each)
    ]
    if told and (len(saturated) == len(KINDS) or told != ["no_material"]):
        left = (
            "" if len(saturated) == len(KINDS) else "; the failures left need nothing that the other kind could bring"
        )
        return "; ".join(closed_words(router_input, kind) for kind in saturated) + f"{left}."
    if len(saturated) == len(KINDS):
        return "Both kinds are saturated: neither weights nor edits of the prompt still bring reward."
    names = " and ".join(_title(kind) for kind in saturated) or "no kind"
    return f"Saturated: {names}; the failures left need nothing that the other kind could bring."


def _title(kind: Kind) -> str:
    return "LoRA" if kind == "lora" else "TextGrad"


def why_this_kind(
    kind: Kind,
    wanted: Sequence[Kind],
    gains: Mapping[Kind, float],
    router_input: RouterInput,
    settings: StrategySettings,
) -> str:
    parts = [need_words(kind, router_input), signal_words(router_input, kind)]
    other: Kind = "textgrad" if kind == "lora" else "lora"
    if other not in wanted and router_input.progress[other].saturated:
        parts.append(closed_words(router_input, other))
    elif other in wanted and gains[other] >= gains[kind] * (1 - settings.tie_share):
        parts.append("a tie, so the cheaper one")
    return "; ".join(parts)
