"""The words in which decisions are explained."""
from collections.abc import Mapping, Sequence

from nslora.tools.router.expected_gain import StrategySettings
from nslora.tools.router.inputs import Situation
from nslora.tools.schema import KINDS, Kind

WORDS: Mapping[str, str] = {"lora": "weights", "textgrad": "prompt"}


def demand_words(kind: Kind, situation: Situation) -> str:
    demand = situation.demand
    if demand is None:
        return "No failure"
    if kind == "lora" and situation.remade_waiting > 0:
        return f"{situation.remade_waiting} verified remade rows wait, from which weights learn content and form alike"
    share = demand.content + demand.both if kind == "lora" else demand.form + demand.both
    need = "content" if kind == "lora" else "form"
    return f"{round(share * demand.failures)} of {demand.failures} failures need {need}"


def signal_words(situation: Situation, kind: Kind) -> str:
    state = situation.progress[kind]
    if state.evidence.get("given_up"):
        return closed_words(situation, kind)
    if state.saturated:
        return f"{title(kind)} is saturated (progress {state.value:.2f})"
    if not state.evidence.get("tries", 0.0):
        return f"{title(kind)} is untried"
    if state.evidence.get("ground_moved", 0.0):
        return f"{title(kind)} is open again, since the ground moved"
    drop = state.evidence.get("relative_loss_drop")
    if state.evidence.get("low_in_a_row", 0.0):
        gain = state.evidence.get("gain", 0.0)
        return f"{title(kind)} brought little last time (gain {gain:+.3f}) but is not saturated"
    if kind == "lora" and drop is not None:
        return f"{title(kind)} still progresses (loss {-drop:+.0%} last epoch)"
    return f"{title(kind)} still progresses (last gain {state.evidence.get('gain', 0.0):+.3f})"


def closed_words(situation: Situation, kind: Kind) -> str:
    """Why a saturated kind does not go."""
    if situation.progress[kind].evidence.get("given_up"):
        return f"{title(kind)} is given up for this run, since the editor failed too often or reached its cap"
    if situation.progress[kind].evidence.get("no_material"):
        return f"{title(kind)} has no failure on train to learn from"
    return f"{title(kind)} is saturated"


def why_nothing_goes(situation: Situation) -> str:
    saturated = [kind for kind in KINDS if situation.progress[kind].saturated]
    for kind in saturated:
        if situation.progress[kind].evidence.get("given_up"):
            return f"{closed_words(situation, kind)}, and the other kind has nothing more to bring."
    if len(saturated) == len(KINDS) and any(situation.progress[kind].evidence.get("no_material") for kind in KINDS):
        return "; ".join(closed_words(situation, kind) for kind in KINDS) + "."
    if len(saturated) == len(KINDS):
        return "Both kinds are saturated: neither weights nor edits of the prompt still bring reward."
    names = " and ".join(title(kind) for kind in saturated) or "no kind"
    return f"Saturated: {names}; the failures left need nothing that the other kind could bring."


def title(kind: Kind) -> str:
    return "LoRA" if kind == "lora" else "TextGrad"


def _explain(
    kind: Kind, wanted: Sequence[Kind], gains: Mapping[Kind, float], situation: Situation, settings: StrategySettings
) -> str:
    parts = [demand_words(kind, situation), signal_words(situation, kind)]
    other: Kind = "textgrad" if kind == "lora" else "lora"
    if other not in wanted and situation.progress[other].saturated:
        parts.append(closed_words(situation, other))
    elif other in wanted and gains[other] >= gains[kind] * (1 - settings.tie_share):
        parts.append("a tie, so the cheaper one")
    return "; ".join(parts)
