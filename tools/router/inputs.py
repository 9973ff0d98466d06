"""The input and the output of a strategy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from nslora.tools.classifier.attribution import Need
from nslora.tools.router.monitoring_signal import Progress, Update
from nslora.tools.schema import KINDS, Kind

Action = Literal["lora", "textgrad", "finish"]


@dataclass(frozen=True)
class RouterInput:
    """Everything that a choice may depend on.

    task: its hash; `random` draws by it, the seed and the round. need: None if nothing failed. cost_tokens: expected
    tokens through the model per update of a kind, by formula and not by the clock, so that a busy machine decides
    alike.
    """

    task: str
    round: int
    rounds_left: int
    failures: int
    validation_reward: float
    target: float
    need: Need | None
    progress: Mapping[Kind, Progress]
    cost_tokens: Mapping[Kind, float]
    remade_waiting: int
    seed: int
    history: tuple[Update, ...]


@dataclass(frozen=True)
class RouterDecision:
    """What to do next, one sentence for people, and the numbers behind it."""

    action: Action
    reason: str
    evidence: Mapping[str, float | str]


class Strategy(Protocol):
    """Chooses the next update."""

    @property
    def name(self) -> str: ...

    def choose(self, router_input: RouterInput) -> RouterDecision: ...


def open_kinds(router_input: RouterInput) -> list[Kind]:
    """The kinds that are not saturated."""
    return [kind for kind in KINDS if not router_input.progress[kind].saturated]


def evidence(router_input: RouterInput) -> dict[str, float | str]:
    """The numbers that a decision is recorded with."""
    evidence: dict[str, float | str] = {
        "validation_reward": router_input.validation_reward,
        "failures": float(router_input.failures),
        "rounds_left": float(router_input.rounds_left),
        "remade_waiting": float(router_input.remade_waiting),
    }
    if router_input.need is not None:
        evidence["p_content"] = router_input.need.p_content
    for kind in KINDS:
        evidence[f"{kind}_progress"] = router_input.progress[kind].value
        evidence[f"{kind}_saturated"] = float(router_input.progress[kind].saturated)
        evidence[f"{kind}_cost_tokens"] = router_input.cost_tokens.get(kind, 0.0)
    return evidence
