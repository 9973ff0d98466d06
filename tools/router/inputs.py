"""What a choice of the next update depends on, what it answers, and the words in which it is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from nslora.tools.classifier.attribution import Demand
from nslora.tools.router.monitoring_signal import Progress, Update
from nslora.tools.schema import KINDS, Kind

Action = Literal["lora", "textgrad", "finish"]


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


def open_kinds(situation: Situation) -> list[Kind]:
    """The kinds that are not saturated."""
    return [kind for kind in KINDS if not situation.progress[kind].saturated]


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

