"""The policy: the model that is adapted, behind one protocol.

`tools/policies/local.py` holds one base in this process's memory. A policy that is served elsewhere (a vLLM server that
loads LoRA adapters, say) takes its place by offering the same methods; nothing outside knows torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from nslora.tools.schema import Dialogue

Origin = Literal["reference", "remade", "replay"]
OnProgress = Callable[[int, int], None]  # (done, total), in the unit that the caller names


def no_progress(done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class TrainingRow:
    """One dialogue and the reply that training should make likely.

    source: id of the train example behind it. origin: why it is in the training job ("reference", "remade", "replay").
    """

    dialogue: tuple[dict[str, str], ...]
    completion: str
    source: str
    origin: Origin


@dataclass(frozen=True)
class TrainingJob:
    """One LoRA update: these rows, this often, from this adapter on.

    start: hash of the adapter to continue (with its optimizer state), None for a new one.
    progress: folder where a killed training job finds its own steps again, None to keep none.
    """

    rows: tuple[TrainingRow, ...]
    epochs: int
    seed: int
    start: str | None = None
    progress: Path | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What a training job left: the new adapter's hash and the trainer's log.

    epoch_losses: nats per scored token, mean of each epoch. grad_norms: mean of each epoch, before clipping.
    steps_done: optimizer steps of this process; less than `steps` where a killed training job was continued.
    """

    adapter: str
    steps: int
    steps_done: int
    trained_tokens: int
    epoch_losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    wall_s: float
    fast_path: str
    log: tuple[dict[str, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Generated:
    """Replies in the order of the dialogues, and what they cost.

    cut: places of the replies that reached the length limit before the model ended them.
    """

    replies: tuple[str, ...]
    tokens: int
    truncated: frozenset[int] = frozenset()


class Policy(Protocol):
    """A language model with LoRA adapters, named by content hash."""

    name: str
    fingerprint: str  # of the base weights and whatever else changes a reply (dtype)
    context_tokens: int

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        """Greedy replies. Raises ModelError where a dialogue does not fit the context."""
        ...

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        """Mean negative log-likelihood of each reference under its dialogue, nats per token."""
        ...

    def train(self, job: TrainingJob, on_progress: OnProgress = no_progress) -> TrainingResult:
        """Train and store a new adapter. Raises DivergedError, ModelError."""
        ...

    def count_tokens(self, dialogue: Dialogue) -> int:
        """Tokens that go through the model: of the prompt with the opening of the reply, or, where the last turn is a
        reply, with the reply and its end.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Plain facts for the report: model, device, dtype, threads, parameters.

        With `forward_flop_per_token` and `training_flop_per_token` (tools/inference/flops.py) the run's compute can be
        counted and capped.
        """
        ...
