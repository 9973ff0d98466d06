"""What a choice of the next update depends on, what it answers, and the words in which it is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from nslora.tools.classifier.attribution import Demand
from nslora.tools.router.monitoring_signal import KINDS, Kind, Progress, Update

Action = Literal["lora", "textgrad", "finish"]
WORDS: Mapping[str, str] = {"lora": "weights", "textgrad": "prompt"}


@dataclass(frozen=True)
class Situation:
    """All that a choice may depend on.

    task: its hash, which with the seed and the round says what chance draws. demand is None where nothing failed.
    cost_tokens: expected tokens through the model per update of a kind, by formula and not by the clock, so that a
    busy machine decides alike.
    """

    task: str
    round: int
    rounds_left: int
    failures: int
    validation_reward: float
    target: float
    demand: Demand | None
    progress: Mapping[Kind, Progress]
    cost_tokens: Mapping[Kind, float]
    remade_waiting: int
    seed: int
    history: tuple[Update, ...]


@dataclass(frozen=True)
class Decision:
    """What to do next, one sentence for people, and the numbers behind it."""

    action: Action
    reason: str
    evidence: Mapping[str, float | str]


class Strategy(Protocol):
    """Chooses the next update."""

    @property
    def name(self) -> str: ...

    def choose(self, situation: Situation) -> Decision: ...


def must_finish(situation: Situation) -> Decision | None:
    """The ends that hold under every strategy: target reached, nothing left to mend, no round left."""
    reward, target = situation.validation_reward, situation.target
    if reward >= target:
        return finish(f"Target reached: validation reward {reward:.3f}, wanted {target:.3f}.", situation)
    if situation.failures == 0 or situation.demand is None:
        return finish(f"Nothing left to mend: no failure on validation (reward {reward:.3f}).", situation)
    if situation.rounds_left <= 0:
        return finish(f"No round left in the budget after {situation.round}.", situation)
    return None


def open_kinds(situation: Situation) -> list[Kind]:
    """The kinds that are not saturated."""
    return [kind for kind in KINDS if not situation.progress[kind].saturated]


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


def evidence(situation: Situation) -> dict[str, float | str]:
    evidence: dict[str, float | str] = {
        "validation_reward": situation.validation_reward,
        "failures": float(situation.failures),
        "rounds_left": float(situation.rounds_left),
        "remade_waiting": float(situation.remade_waiting),
    }
    if situation.demand is not None:
        evidence["p_content"] = situation.demand.p_content
    for kind in KINDS:
        evidence[f"{kind}_progress"] = situation.progress[kind].value
        evidence[f"{kind}_saturated"] = float(situation.progress[kind].saturated)
        evidence[f"{kind}_cost_tokens"] = situation.cost_tokens.get(kind, 0.0)
    return evidence


def go(kind: Kind, reason: str, situation: Situation, gains: Mapping[Kind, float] | None = None) -> Decision:
    expected = {f"{each}_expected": value for each, value in (gains or {}).items()}
    return Decision(kind, f"{reason}; {WORDS[kind]}.", {**evidence(situation), **expected})


def finish(reason: str, situation: Situation) -> Decision:
    return Decision("finish", reason, evidence(situation))
