"""One burst of LoRA training through TRL's SFTTrainer.

Rows, order and number of steps are fixed before the first step, so that a burst that was killed goes on where it was
and ends with the same adapter.
"""

import math
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nslora.tools.burst_progress import BurstProgress, moments
from nslora.tools.errors import DivergedError
from nslora.tools.frozen_trunk import (
    compact_head,
    lowest_trained_block,
    trunk_is_exact,
    trunk_states,
    without_trunk,
)
from nslora.tools.policy import Advance
from nslora.tools.settings import LoraSettings

LARGEST_TRUNK_BYTES = 2 << 30       # cached states above this are not worth the memory: plain training
TRUNK_BATCH = 8


@dataclass(frozen=True)
class TokenRow:
    """A training row as tokens: what is given, and what is learnt."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Plan:
    """Everything about a burst that is known before its first step.

    order: row numbers in the order of training, all epochs one after the other; each epoch is a permutation.
    """

    rows: tuple[TokenRow, ...]
    epochs: int
    seed: int
    pad_id: int
    settings: LoraSettings

    @cached_property
    def order(self) -> tuple[int, ...]:
        order: list[int] = []
        for epoch in range(self.epochs):
            numbers = list(range(len(self.rows)))
            random.Random(f"{self.seed}/{epoch}").shuffle(numbers)
            order += numbers
        return tuple(order)

    @property
    def steps(self) -> int:
        return math.ceil(len(self.order) / self.settings.batch_size)

    @property
    def width(self) -> int:
        """Every batch is padded to this many tokens: equal padding is what makes cached states exact to the bit."""
        return max(len(row) for row in self.rows)

    def epoch_of(self, step: int) -> int:
        """The epoch that step `step` (from 0) begins in."""
        return min(step * self.settings.batch_size // len(self.rows), self.epochs - 1)

    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        """input_ids, attention_mask and labels of these rows, (B, width) int64, padded on the right.

        Labels are masked by length and never by the pad token, which may be the end token that is to be learnt.
        """
        import torch

        shape = (len(numbers), self.width)
        ids, mask = torch.full(shape, self.pad_id), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for i, number in enumerate(numbers):
            row = self.rows[number]
            ids[i, :len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
            labels[i, len(row.prompt_ids):len(row)] = torch.tensor(row.completion_ids)
            mask[i, :len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass
class Collator:
    """Row numbers to a batch; with cached states in the place of token ids where the trunk is frozen."""

    plan: Plan
    states: list[Any] | None = None

    def __call__(self, items: Sequence[dict[str, int]]) -> dict[str, Any]:
        import torch

        numbers = [item["row"] for item in items]
        batch = self.plan.batch(numbers)
        if self.states is not None:
            del batch["input_ids"]
            batch["inputs_embeds"] = torch.stack([self.states[number] for number in numbers])
        return batch


@dataclass
class Outcome:
    """What a finished burst tells: one entry of the trainer's log a step (loss in nats per token, grad_norm, ...)."""

    plan: Plan
    log: list[dict[str, float]] = field(default_factory=list)
    steps_done: int = 0
    wall_s: float = 0.0
    fast_path: str = ""
    moments: dict[str, Any] = field(default_factory=dict)     # of the optimizer, for the burst that continues this one

    def per_epoch(self, key: str) -> tuple[float, ...]:
        """Mean of a logged quantity in each epoch."""
        values: dict[int, list[float]] = {}
        for step, entry in enumerate(self.log):
            values.setdefault(self.plan.epoch_of(step), []).append(entry[key])
        return tuple(sum(v) / len(v) for _, v in sorted(values.items()))

    @property
    def trained_tokens(self) -> int:
        """Tokens that went through the steps of this process, padding left out."""
        batch = self.plan.settings.batch_size
        numbers = self.plan.order[(len(self.log) - self.steps_done) * batch:]
        return sum(len(self.plan.rows[number]) for number in numbers)


def train(model: Any, tokenizer: Any, plan: Plan, progress: BurstProgress, advance: Advance) -> Outcome:
    """Train the active adapter of a PeftModel in place.

    Raises DivergedError where a step's loss is no finite number or above `settings.max_loss_nats`.
    """
    from datasets import Dataset

    started = time.monotonic()
    done = progress.restore(model)
    outcome = Outcome(plan, log=list(progress.log))
    batch = plan.settings.batch_size
    rest = plan.order[done * batch:]
    with ExitStack() as stack:
        base = model.get_base_model()
        collator, positions, outcome.fast_path = fast_path(stack, model, plan, epochs=len(rest) / len(plan.rows))
        if rest:
            trainer = burst_trainer(model, tokenizer, plan, Dataset.from_dict({"row": list(rest)}), collator,
                                    positions, progress, outcome, advance)
            try:
                trainer.train()
                outcome.moments = moments(model, trainer.optimizer)
            finally:
                # TRL wraps the forward anew in each trainer; left alone, the wraps pile up.
                vars(base).pop("forward", None)
                trainer.accelerator.free_memory()
    model.eval()
    outcome.moments = outcome.moments or progress.moments
    outcome.wall_s = time.monotonic() - started
    return outcome


def fast_path(stack: ExitStack, model: Any, plan: Plan, epochs: float) -> tuple[Collator, Any, str]:
    """Enter the short cuts that are exact here, for this many `epochs` of the rows.

    Returns the collator, the head's positions (None: all of them), and what was chosen, in words.
    """
    if not plan.settings.fast:
        return Collator(plan), None, "plain (switched off)"
    base = model.get_base_model()
    try:
        positions = stack.enter_context(compact_head(base))
        cut = lowest_trained_block(base, [n for n, p in model.named_parameters() if p.requires_grad])
    except ValueError as error:
        return Collator(plan), None, f"plain ({error})"
    states = cached_states(model, plan, cut or 0) if cut and epochs > 1 else None
    if states is None:
        return Collator(plan), positions, "compact head"
    stack.enter_context(without_trunk(base, cut or 0))
    return Collator(plan, states), positions, f"compact head, frozen trunk of {cut} blocks"


def cached_states(model: Any, plan: Plan, cut: int) -> list[Any] | None:
    """What enters block `cut` for each row, or None where caching it is not exact or takes too much memory."""
    import torch

    base = model.get_base_model()
    width = base.config.get_text_config().hidden_size
    size_bytes = len(plan.rows) * plan.width * width * next(base.parameters()).element_size()
    if size_bytes > LARGEST_TRUNK_BYTES:
        return None
    model.eval()
    numbers = list(range(len(plan.rows)))

    def batches() -> Any:
        for start in range(0, len(numbers), TRUNK_BATCH):
            batch = plan.batch(numbers[start:start + TRUNK_BATCH])
            yield batch["input_ids"].to(base.device), batch["attention_mask"].to(base.device)

    states = trunk_states(base, batches(), cut)
    probe = plan.batch(numbers[:2])
    exact = trunk_is_exact(base, probe["input_ids"].to(base.device), probe["attention_mask"].to(base.device),
                           torch.stack(states[:2]).to(base.device), cut)
    return states if exact else None


def burst_trainer(model: Any, tokenizer: Any, plan: Plan, dataset: Any, collator: Collator, positions: Any,
                  progress: BurstProgress, outcome: Outcome, advance: Advance) -> Any:
    """An SFTTrainer that runs the rest of the plan, in its order."""
    import torch
    from transformers import TrainerCallback, get_scheduler
    from trl import SFTTrainer

    class BurstTrainer(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if positions is not None:
                inputs = {**inputs, "shift_labels": positions.set(inputs["labels"])}
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs is None or "loss" not in logs:
                return
            outcome.log.append({key: float(value) for key, value in logs.items()})
            outcome.steps_done += 1
            check_loss(float(logs["loss"]), plan.settings.max_loss_nats, len(outcome.log))
            progress.after_step(model, optimizer, outcome.log)
            advance(len(outcome.log), plan.steps)

    settings = plan.settings
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    scheduler = get_scheduler(settings.schedule, optimizer, round(settings.warmup_share * plan.steps), plan.steps)
    progress.restore_optimizer(model, optimizer)
    with warnings.catch_warnings():
        # The optimizer's steps were done by the process that was killed.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(plan.steps - math.ceil(len(dataset) / settings.batch_size)):
            scheduler.step()
    trainer = BurstTrainer(
        model=model, args=trainer_arguments(plan, model), train_dataset=dataset, data_collator=collator,
        processing_class=tokenizer, optimizers=(optimizer, scheduler), callbacks=[Watch()])
    # The default callbacks print each log line as a dict and draw a second progress bar.
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def trainer_arguments(plan: Plan, model: Any) -> Any:
    """SFTConfig for one burst; every choice that is not the library's default has its reason here."""
    from trl import SFTConfig

    dtype = str(next(model.parameters()).dtype)
    device = next(model.parameters()).device.type
    return SFTConfig(
        output_dir=tempfile.gettempdir(), save_strategy="no", report_to=[], logging_steps=1, logging_strategy="steps",
        per_device_train_batch_size=plan.settings.batch_size, num_train_epochs=1, seed=plan.seed, data_seed=plan.seed,
        max_grad_norm=plan.settings.max_grad_norm,
        # The default replaces a NaN loss by the mean of the others before it is logged.
        logging_nan_inf_filter=False,
        # The data set already holds all epochs in order.
        train_sampling_strategy="sequential",
        # Rows are numbers until they are collated; nothing to tokenise, no column to drop.
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, max_length=None,
        # TRL's defaults are True; bf16 on a CPU without bf16 units is 19 times slower, and checkpointing trades time
        # for memory that a frozen trunk does not need.
        bf16=device == "cuda" and dtype == "torch.bfloat16", fp16=False, gradient_checkpointing=False,
        use_cpu=device == "cpu", dataloader_pin_memory=device == "cuda", disable_tqdm=True, packing=False)


def check_loss(loss: float, bound: float, step: int) -> None:
    """Raise DivergedError where a loss, in nats per token, is not finite or above its bound."""
    if not math.isfinite(loss) or loss > bound:
        raise DivergedError(f"The loss was {loss:g} nats per token at step {step} (bound: {bound:g}); lower "
                            "lora.learning_rate.")
