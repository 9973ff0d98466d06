"""What a training job has done so far: its log, and whether it should stop early."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from nslora.tools.training.batches import BatchPlan


@dataclass
class Outcome:
    """The progress and the result of one training job.

    Attributes:
        plan: Rows, order and settings.
        log: One entry of the trainer's log per step: loss in nats per token, grad_norm, learning rate.
        moments: AdamW's state at the end, for the job that continues this one.
        steps_done: Steps of this process.
        wall_s: Seconds of this process.
        fast_path: The shortcuts that were used, in words.
    """

    plan: BatchPlan
    log: list[dict[str, float]]
    moments: dict[str, Any] = field(default_factory=dict)
    steps_done: int = 0
    wall_s: float = 0.0
    fast_path: str = ""

    def per_epoch(self, key: str) -> tuple[float, ...]:
        """Return the mean of a logged quantity in each epoch."""
        values: dict[int, list[float]] = {}
        for step, entry in enumerate(self.log):
            values.setdefault(self.plan.epoch_of(step), []).append(entry[key])
        return tuple(sum(v) / len(v) for _, v in sorted(values.items()))

    @property
    def trained_tokens(self) -> int:
        """Tokens of all steps without padding, those of a killed process included."""
        done = self.plan.order[: len(self.log) * self.plan.settings.batch_size]
        return sum(len(self.plan.rows[number]) for number in done)

    @property
    def stopped_early(self) -> bool:
        """Whether the job has nothing more to learn from its rows.

        This is so if an epoch has just ended and its mean loss is below `early_stop_loss_nats`, or if the loss fell by
        less than the share `early_stop_drop` in each of the last `early_stop_patience` epochs. It depends on the log
        alone, so a resumed job stops at the same step as an uninterrupted one.
        """
        settings, steps, patience = self.plan.settings, len(self.log), self.plan.settings.early_stop_patience
        if patience is None or not 0 < steps < self.plan.steps:
            return False
        if self.plan.epoch_of(steps - 1) == self.plan.epoch_of(steps):
            return False
        losses = self.per_epoch("loss")
        stalled = [before - after < settings.early_stop_drop * before for before, after in pairwise(losses)]
        return losses[-1] < settings.early_stop_loss_nats or (len(stalled) >= patience and all(stalled[-patience:]))
