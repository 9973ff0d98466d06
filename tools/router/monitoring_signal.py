"""The unified monitoring signal: how much progress each kind of update still makes, as one number in [0, 1].

After arXiv 2601.12711: loss change across epochs or gradient norms tell when LoRA has saturated, then edits of the
prompt take over; when those bring little, back to LoRA. The formulas and thresholds below are this project's own.

Progress of one update:

    reward term    R = clip(max(gain, potential_gain) / full_gain, 0, 1)
    loss term      L = clip(((l[-2] - l[-1]) / l[-2]) / full_loss_drop, 0, 1)      l: mean loss of each epoch
    gradient term  G = last epoch's gradient norm / largest so far of any training job
    lora, kept         max(R, sqrt(L * G))
    lora, dropped      dropped_weight * sqrt(L * G)
    textgrad, kept     R
    textgrad, dropped  0
    failed             0

A kind's value is that of its last training job (lora) or the mean over its last `window` edits (textgrad). A kind
saturates when each of its last `patience` updates stayed under its threshold, and stays so until its ground moves: an
update of the other kind was kept, or (for lora) an edit brought verified rows to train on. Then its value goes half-way
back to the 1.0 of a kind never tried. It has all its patience again after a kept update, but one try after the rows of
a dropped edit, and none where such a try was in vain since the last update that was kept: in the benchmark's records of
commit 73abcb6 all 22 training jobs that such rows had opened were dropped too, and each costs two of other training
jobs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nslora.tools.schema import KINDS, Kind, Settings


class SignalSettings(Settings):
    """Thresholds of the signal, each with its reason."""

    # Reward gain that counts as full progress; 5 points are worth any round.
    full_gain: float = Field(0.05, gt=0, le=1)
    # Relative loss drop over one epoch that counts as full speed; a training job that learns halves its loss in two
    # epochs, which is 0.29 each.
    full_loss_drop: float = Field(0.30, gt=0, le=1)
    # Below it a training job moves the reward by under half a point.
    lora_threshold: float = Field(0.10, gt=0, lt=1)
    # Same unit as for lora, so that the two can be compared.
    textgrad_threshold: float = Field(0.10, gt=0, lt=1)
    # What a falling loss counts for when the training job was dropped: rows learnt by heart lower the loss without
    # raising the reward. Under the threshold, or a useless kind would never saturate.
    dropped_weight: float = Field(0.05, ge=0, lt=1)
    # One training job can be bad luck of its sample; each further one costs minutes.
    lora_patience: int = Field(2, ge=1)
    # One edit can be bad luck of the editor; a second has seen the first's outcome.
    textgrad_patience: int = Field(2, ge=1)
    # Edits that the value of textgrad is averaged over.
    window: int = Field(2, ge=1)
    # A saturated kind that was run all the same opens again above this many thresholds (hysteresis).
    reopen_factor: float = Field(2.0, ge=1)

    @model_validator(mode="after")
    def _dropped_stays_below(self) -> Self:
        if self.dropped_weight >= self.lora_threshold:
            raise ValueError(
                f"dropped_weight {self.dropped_weight} must be below lora_threshold {self.lora_threshold}: "
                "otherwise dropped training jobs never saturate."
            )
        return self

    def threshold(self, kind: Kind) -> float:
        """Progress of one update below which it counts as low."""
        return self.lora_threshold if kind == "lora" else self.textgrad_threshold

    def patience(self, kind: Kind) -> int:
        """Low updates in a row after which the kind is saturated."""
        return self.lora_patience if kind == "lora" else self.textgrad_patience


DEFAULTS = SignalSettings()


@dataclass(frozen=True)
class Update:
    """One finished and measured update.

    gain and potential_gain are paired means on validation against the candidate kept before, in reward units.
    new_rows: verified remade rows that an edit brought; they move the ground for lora even if the edit was dropped.
    """

    kind: Kind
    kept: bool
    gain: float
    repairable_gain: float
    epoch_losses_nats: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    new_rows: int = 0
    failed: bool = False

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """From the record of a round."""
        return cls(
            kind=record["action"],
            kept=record["kept"],
            gain=record["numbers"].get("gain", 0.0),
            repairable_gain=record["numbers"].get("potential_gain", 0.0),
            epoch_losses_nats=tuple(record["epoch_losses_nats"]),
            grad_norms=tuple(record["grad_norms"]),
            new_rows=record["new_rows"],
            failed=record["error"] is not None,
        )


@dataclass(frozen=True)
class Progress:
    """Value in [0, 1] of one kind, whether it is saturated, and the numbers that say so."""

    kind: Kind
    value: float
    saturated: bool
    evidence: Mapping[str, float] = field(default_factory=dict)


def progress_of(kind: Kind, history: Sequence[Update], settings: SignalSettings = DEFAULTS) -> Progress:
    """Progress that updates of this kind still make, from the whole history of updates, oldest first.

    A kind never tried has value 1.0 and is open: nothing is known against it.
    """
    threshold, patience = settings.threshold(kind), settings.patience(kind)
    values: list[float] = []
    low, saturated, moved, largest_norm = 0, False, False, 0.0
    lent, in_vain = False, False  # a try on the rows of a dropped edit: open, and had without success
    last: dict[str, float] = {}
    for update in history:
        if update.kind != kind:
            in_vain = in_vain and not update.kept
            if _moves_ground(update, kind) and not in_vain:
                lent = not update.kept and (lent or saturated)
                low, saturated, moved = 0 if update.kept else min(low, patience - 1), False, True
            continue
        largest_norm = max([largest_norm, *(norm for norm in update.grad_norms if math.isfinite(norm))])
        value, last = _value(update, largest_norm, settings)
        values.append(value)
        lent, in_vain, moved = False, (in_vain or lent) and not update.kept, False
        low = low + 1 if value < threshold else 0
        saturated = low >= patience or (saturated and value < settings.reopen_factor * threshold)
    evidence = {**last, "tries": float(len(values)), "low_in_a_row": float(low), "ground_moved": float(moved)}
    if not values:
        return Progress(kind, 1.0, False, evidence)
    recent = values[-1:] if kind == "lora" else values[-settings.window :]
    value = sum(recent) / len(recent)
    evidence["measured"] = value
    return Progress(kind, (1.0 + value) / 2 if moved else value, saturated, evidence)


def signal_of(history: Sequence[Update], settings: SignalSettings = DEFAULTS) -> dict[str, dict[str, float]]:
    """The signal of each kind as plain numbers: value, saturated (0 or 1), and the evidence."""
    found = {kind: progress_of(kind, history, settings) for kind in KINDS}
    return {
        kind: {"value": each.value, "saturated": float(each.saturated), **each.evidence} for kind, each in found.items()
    }


def read_signal(signal: Mapping[str, Mapping[str, float]]) -> dict[Kind, Progress]:
    """The inverse of `signal_of`."""
    found: dict[Kind, Progress] = {}
    for kind in KINDS:
        evidence = dict(signal[kind])
        value, saturated = evidence.pop("value"), bool(evidence.pop("saturated"))
        found[kind] = Progress(kind, value, saturated, evidence)
    return found


Closed = Literal["given_up", "no_material", "in_vain", "dropped"]


def closed(progress: Progress, why: Closed) -> Progress:
    """The same kind, closed whatever its progress: its editor is given up, no failure on train is left to show, it was
    tried from the start in vain, or it was dropped too often.
    """
    return replace(progress, value=0.0, saturated=True, evidence={**progress.evidence, why: 1.0})


def _moves_ground(other: Update, kind: Kind) -> bool:
    """Whether an update of the other kind makes what was known about this kind out of date."""
    if other.failed:
        return False
    return other.kept or (kind == "lora" and other.new_rows > 0)


def _value(update: Update, largest_norm: float, settings: SignalSettings) -> tuple[float, dict[str, float]]:
    """Progress of one update and the terms that made it."""
    evidence = {"gain": update.gain, "potential_gain": update.repairable_gain, "kept": float(update.kept)}
    if update.failed:
        return 0.0, {**evidence, "failed": 1.0}
    reward_term = _unit(max(update.gain, update.repairable_gain) / settings.full_gain) if update.kept else 0.0
    if update.kind == "textgrad":
        return reward_term, evidence
    drop = relative_loss_drop(update.epoch_losses_nats)
    share = _unit(update.grad_norms[-1] / largest_norm) if update.grad_norms and largest_norm > 0 else 1.0
    # Without two epochs the loss says nothing about a trend: the reward alone decides.
    trainer_term = math.sqrt(_unit((drop or 0.0) / settings.full_loss_drop) * share)
    if drop is not None:
        evidence["relative_loss_drop"] = drop
    evidence["gradient_share"] = share
    if not update.kept:
        return settings.dropped_weight * trainer_term, evidence
    return max(reward_term, trainer_term), evidence


def relative_loss_drop(epoch_losses_nats: Sequence[float]) -> float | None:
    """(l[-2] - l[-1]) / l[-2] over the last two epochs; None below two epochs or if a loss is not finite."""
    if len(epoch_losses_nats) < 2 or not all(math.isfinite(loss) for loss in epoch_losses_nats[-2:]):
        return None
    before, after = epoch_losses_nats[-2:]
    return (before - after) / max(before, 1e-12)


def _unit(value: float) -> float:
    """The value clipped to [0, 1]; 0 if it is not a number."""
    return 0.0 if math.isnan(value) else min(1.0, max(0.0, value))
