"""The policy: the model that is adapted, behind one protocol.

Behind it stand replies (`ReplyEngine`) and training (`TrainingEngine`), joined by the adapter store.
`tools/policies/local.py` does both with one copy of the weights in this process, `tools/policies/composed.py` joins any
two. No code outside `inference/`, `training/` and `policies/` uses torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from nslora.tools.schema import Dialogue

Origin = Literal["reference", "remade", "replay"]
Thinking = Literal["off", "on", "template"]  # whether replies begin with thinking; "template": as its default is
OnProgress = Callable[[int, int], None]  # (done, total), in the caller's unit


class OnStep(Protocol):
    """Called after each training step; a trainer that does not know the step's numbers leaves `values` out."""

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        """Take note of a step.

        Args:
            done: Steps done.
            total: All steps of the job.
            values: `STEP_VALUES` of this step.
        """


# Of the trainer's log: nats per scored token, before clipping, and the optimizer's.
STEP_VALUES = ("loss", "grad_norm", "learning_rate")


def no_progress(done: int, total: int, values: Mapping[str, float] | None = None) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class TrainingRow:
    """One dialogue and the reply to train on.

    Attributes:
        dialogue: Turns before the reply.
        completion: The reply. Only its tokens are scored.
        source: Id of the train example that the row comes from.
        origin: Why the row is in the training job.
    """

    dialogue: tuple[dict[str, str], ...]
    completion: str
    source: str
    origin: Origin


@dataclass(frozen=True)
class TrainingJob:
    """One LoRA update.

    Attributes:
        rows: Rows to train on.
        epochs: Passes over the rows.
        seed: Seed of the row order, of new LoRA weights and of dropout.
        start: Hash of the adapter to continue, with its optimizer state. None starts a new adapter.
        progress: Folder of snapshots, from which a killed training job resumes. None writes none.
    """

    rows: tuple[TrainingRow, ...]
    epochs: int
    seed: int
    start: str | None = None
    progress: Path | None = None


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training job.

    Attributes:
        adapter: Hash of the new adapter.
        steps: Optimizer steps of the whole job.
        steps_done: Optimizer steps of this process: fewer than `steps` if the job was resumed.
        trained_tokens: Tokens of all steps, without padding.
        epoch_losses: Mean loss of each epoch, nats per scored token.
        grad_norms: Mean gradient norm of each epoch, before clipping.
        wall_s: Seconds of this process.
        fast_path: The shortcuts that were used.
        log: `STEP_VALUES` of each step.
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
    """Replies in the order of the dialogues, and their cost.

    Attributes:
        replies: One reply per dialogue. Thinking stands between `<think>` and `</think>` before the answer.
        tokens: Generated tokens, over all replies.
        truncated: Indices of the replies that reached the length limit before the model ended them.
    """

    replies: tuple[str, ...]
    tokens: int
    truncated: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Sampling:
    """Draws replies in place of the greedy ones: the same one for the same dialogue, number and temperature.

    Attributes:
        temperature: Above 0.
        number: Which sample of a dialogue, from 1.
    """

    temperature: float
    number: int


class ReplyEngine(Protocol):
    """Generates and scores: a model in this process, or servers of it. It finds adapters in the store by their hash.

    An engine whose `generate` takes `sampling` (a `Sampling`, or None for greedy replies) can try again where no greedy
    trajectory of an agent passed.
    """

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        """Generate greedy replies.

        Raises:
            ModelError: If a dialogue with its reply does not fit the context.
        """
        ...

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        """Return the mean negative log-likelihood of each reference after its dialogue, nats per token."""
        ...


class TrainingEngine(Protocol):
    """Trains adapters: in this process, or as a program of its own. It puts them into the store under their hash."""

    def train(self, job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        """Train and store a new adapter.

        Raises:
            DivergedError: If a loss is not finite or above its bound.
            ModelError: If the rows do not fit the context or the memory.
        """
        ...


class Policy(ReplyEngine, TrainingEngine, Protocol):
    """A language model with LoRA adapters, which are named by content hash.

    Attributes:
        name: The model's name in reports.
        fingerprint: Hash of the base weights and of whatever else changes a reply: chat template, dtype, the engine
            if it is not local.
        context_tokens: Length of the context.
    """

    name: str
    fingerprint: str
    context_tokens: int

    def count_tokens(self, dialogue: Dialogue) -> int:
        """Count the tokens that go through the model.

        If the last turn is a reply, its tokens and the end of its turn count too; else the opening of the reply.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return plain facts for the report: model, device, dtype, threads, parameters.

        With `forward_flop_per_token` and `training_flop_per_token` (`tools/inference/flops.py`) a run can count and
        limit its compute.
        """
        ...
