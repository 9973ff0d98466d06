"""One LoRA training job through TRL's SFTTrainer.

Rows, order and number of steps are fixed before the first step, so that a training job that was killed goes on where it
was and ends with the same adapter.
"""

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from nslora.tools.errors import DivergedError
from nslora.tools.inference.decoder import blocks_of, compact_head, inputs_of
from nslora.tools.inference.generation import beyond_window, rounding
from nslora.tools.policy import OnProgress
from nslora.tools.training.batches import BatchPlan, Layout, PaddedLayout, SharedPrefixLayout, shared_layout
from nslora.tools.training.cuda_graphs import LEAST_STEPS, captured_decoder
from nslora.tools.training.frozen_trunk import (
    drops_out,
    lowest_trained_block,
    trunk_is_exact,
    trunk_states,
    without_trunk,
)
from nslora.tools.training.memory import refuse_what_does_not_fit
from nslora.tools.training.snapshots import Snapshots, moments

REPEATABLE = "repeatable"  # among what a base was found to bear: kernels that add in a fixed order
NOT_REPEATABLE = "not the same to the bit if repeated: an operation of this model has no such kernel on this GPU"
LARGEST_TRUNK_BYTES = 2 << 30  # cached states above this are not worth the memory: plain training


@dataclass
class Collator:
    """Row numbers to a batch; with cached states in the place of token ids where the trunk is frozen."""

    layout: Layout
    states: list[Any] | None = None

    def __call__(self, items: Sequence[dict[str, int]]) -> dict[str, Any]:
        numbers = [item["row"] for item in items]
        batch = self.layout.batch(numbers)
        if self.states is not None:
            del batch["input_ids"]
            batch["inputs_embeds"] = self.layout.join([self.states[number] for number in numbers])
        return batch


@dataclass
class Outcome:
    """What a finished training job tells: one entry of the trainer's log a step (loss in nats per token, grad_norm,
    ...).
    """

    plan: BatchPlan
    log: list[dict[str, float]] = field(default_factory=list)
    steps_done: int = 0
    wall_s: float = 0.0
    fast_path: str = ""
    moments: dict[str, Any] = field(
        default_factory=dict
    )  # of the optimizer, for the training job that continues this one

    def per_epoch(self, key: str) -> tuple[float, ...]:
        """Mean of a logged quantity in each epoch."""
        values: dict[int, list[float]] = {}
        for step, entry in enumerate(self.log):
            values.setdefault(self.plan.epoch_of(step), []).append(entry[key])
        return tuple(sum(v) / len(v) for _, v in sorted(values.items()))

    @property
    def trained_tokens(self) -> int:
        """Tokens that went through the steps, padding left out; those of a process that was killed count too."""
        done = self.plan.order[: len(self.log) * self.plan.settings.batch_size]
        return sum(len(self.plan.rows[number]) for number in done)

    @property
    def stopped_early(self) -> bool:
        """Whether the signal says that this training job has nothing more to learn from its rows.

        That is: an epoch has just ended, and its mean loss is below `early_stop_loss_nats`, or in the last
        `early_stop_patience` ones the loss fell by less than `early_stop_drop` each. A pure function of the log, so
        that a resumed training job stops where the whole one does.
        """
        settings, steps = self.plan.settings, len(self.log)
        if not steps or self.plan.epoch_of(steps - 1) == self.plan.epoch_of(steps) or steps >= self.plan.steps:
            return False
        losses = self.per_epoch("loss")
        if settings.early_stop_patience is None:
            return False
        if losses[-1] < settings.early_stop_loss_nats:
            return True
        if len(losses) <= settings.early_stop_patience:
            return False
        last = losses[-settings.early_stop_patience - 1 :]
        return all(before - after < settings.early_stop_drop * before for before, after in pairwise(last))


def train(
    model: Any,
    tokenizer: Any,
    plan: BatchPlan,
    progress: Snapshots,
    found_exact: dict[str, bool],
    on_progress: OnProgress,
) -> Outcome:
    """Train the active adapter of a PeftModel in place.

    found_exact: which short cuts this base was found to bear; the caller keeps it, so that each is probed once.

    Raises DivergedError where a step's loss is no finite number or above `settings.max_loss_nats`.
    """
    from datasets import Dataset

    started = time.monotonic()
    done = progress.restore(model)
    outcome = Outcome(plan, log=list(progress.log))
    rest = plan.rest(done)
    with ExitStack() as stack:
        if repeatable := found_exact.get(REPEATABLE, True):
            stack.enter_context(fixed_order_of_sums(model.device))
        base = model.get_base_model()
        blocks = trained_blocks(model)
        cuts = short_cuts(stack, model, plan, found_exact)
        refuse_what_does_not_fit(base, cuts.layout, blocks, cached=bool(cuts.trunk), compact=cuts.positions is not None)
        outcome.fast_path = cuts.words if repeatable else f"{cuts.words}, {NOT_REPEATABLE}"
        if rest and not outcome.stopped_early:
            collator = Collator(cuts.layout, cached_states(base, cuts.layout, cuts.trunk) if cuts.trunk else None)
            if cuts.trunk:
                stack.enter_context(without_trunk(base, cuts.trunk))
            trainer = job_trainer(
                model,
                tokenizer,
                plan,
                Dataset.from_dict({"row": list(rest)}),
                collator,
                cuts.positions,
                progress,
                outcome,
                on_progress,
            )
            if graphs := enter_graphs(stack, model, plan, collator, autocast=trainer.args.bf16):
                outcome.fast_path += f", {graphs}"
            stack.enter_context(kept_in_training(model, trainer.optimizer))
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


def enter_graphs(stack: ExitStack, model: Any, plan: BatchPlan, collator: Collator, *, autocast: bool) -> str:
    """Enter CUDA graphs for the batches of this plan on the stack, where they are exact and pay; what to say of them.

    Like the other short cuts they depend on the whole plan, never on what is left of it.
    """
    base = model.get_base_model()
    if model.device.type != "cuda" or not plan.settings.fast or plan.settings.dropout:
        return ""
    try:
        decoder, _ = blocks_of(base)
    except ValueError:
        return ""
    often = [numbers for numbers, steps in collator.layout.kinds().items() if steps >= LEAST_STEPS]
    if not often or drops_out(base):
        return ""
    captured = stack.enter_context(captured_decoder(decoder))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    notes = [
        captured.record(
            inputs_of(base, collator([{"row": number} for number in numbers])), trainable, autocast=autocast
        )
        for numbers in often
    ]
    return ", ".join(dict.fromkeys(note or "CUDA graphs" for note in notes))


@contextmanager
def kept_in_training(model: Any, optimizer: Any) -> Iterator[None]:
    """While inside, the model stays in training, and its gradients are the optimizer's to drop.

    The trainer sees to both at each step by walking through all modules, which takes a GPU's host longer than it takes
    the GPU to compute the step.
    """
    model.train()
    model.train = lambda mode=True: model
    model.zero_grad = optimizer.zero_grad
    try:
        yield
    finally:
        del model.train, model.zero_grad


@contextmanager
def fixed_order_of_sums(device: Any) -> Iterator[None]:
    """While inside, the same seed gives the same weights on a GPU too: the usual kernels add up in the order in which
    threads arrive. An operation without such a kernel raises RuntimeError (see `lacks_fixed_order`).
    """
    import torch

    if device.type != "cuda":
        yield
        return
    memory: Any = torch.utils.deterministic
    fill, enabled = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # Only warned of, attention's usual backward kernel would be taken all the same.
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a help to find errors, and slow
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill


def lacks_fixed_order(error: RuntimeError) -> bool:
    """Whether torch has no kernel for an operation of this model that adds in a fixed order."""
    return "deterministic" in str(error)


@dataclass(frozen=True)
class ShortCuts:
    """positions: of the compact head, None for all of them. trunk: frozen blocks that each step leaves out."""

    layout: Layout
    words: str
    positions: Any = None
    trunk: int = 0


def short_cuts(stack: ExitStack, model: Any, plan: BatchPlan, found_exact: dict[str, bool]) -> ShortCuts:
    """The short cuts that are exact here; the compact head is entered on the stack.

    They depend on the whole plan, never on what is left of it: the numbers of a shared prefix are those of the padded
    layout up to rounding only, so a training job that was killed must go on with the very cuts that it began with.
    """
    if not plan.settings.fast:
        return ShortCuts(PaddedLayout(plan), "plain (switched off)")
    base = model.get_base_model()
    try:
        positions = stack.enter_context(compact_head(base))
        cut = lowest_trained_block(base, [n for n, p in model.named_parameters() if p.requires_grad])
    except ValueError as error:
        return ShortCuts(PaddedLayout(plan), f"plain ({error})")
    used = ["compact head"]
    model.eval()
    layout: Layout = PaddedLayout(plan)
    if beyond_window(base, max(len(row) for row in plan.rows)):
        return ShortCuts(layout, "compact head (rows outgrow the model's sliding window)", positions)
    packed = shared_layout(plan) if plan.settings.share_prefix and not drops_out(base) else None
    if packed is not None and probed(found_exact, "shared prefix", lambda: layouts_agree(base, plan, packed)):
        layout = packed
        used.append(f"shared prefix of {packed.shared} tokens")
    repeated = len(plan.order) > len(plan.rows)
    trunk = 0
    if (
        cut
        and repeated
        and fits_memory(base, plan)
        and not drops_out(base, cut)
        and probed(
            found_exact, f"trunk {cut} {type(layout).__name__}", lambda: trunk_is_exact(base, layout.batch([0]), cut)
        )
    ):
        trunk = cut
        used.append(f"frozen trunk of {cut} blocks")
    return ShortCuts(layout, ", ".join(used), positions, trunk)


def trained_blocks(model: Any) -> int:
    """How many of the top blocks hold something that trains."""
    base = model.get_base_model()
    try:
        lowest = lowest_trained_block(base, [n for n, p in model.named_parameters() if p.requires_grad])
    except ValueError:
        lowest = None
    return int(base.config.get_text_config().num_hidden_layers) - (lowest or 0)


def probed(found: dict[str, bool], name: str, probe: Callable[[], bool]) -> bool:
    """The answer to a probe, asked once per base."""
    if name not in found:
        found[name] = probe()
    return found[name]


def fits_memory(base: Any, plan: BatchPlan) -> bool:
    """Whether the trunk's states of all rows may be kept."""
    longest, hidden = max(len(row) for row in plan.rows), base.config.get_text_config().hidden_size
    return bool(len(plan.rows) * longest * hidden * next(base.parameters()).element_size() <= LARGEST_TRUNK_BYTES)


def layouts_agree(base: Any, plan: BatchPlan, packed: SharedPrefixLayout) -> bool:
    """Whether this architecture gives the supervised positions of two rows alike in both layouts, up to rounding."""
    import torch

    decoder, _ = blocks_of(base)
    found = []
    try:
        with torch.no_grad():
            for layout in (PaddedLayout(plan), packed):
                batch = layout.batch([0, 1])
                states = decoder(**inputs_of(base, batch), use_cache=False).last_hidden_state
                found.append(states[:, :-1][batch["labels"][:, 1:] != -100])
    except (RuntimeError, TypeError, ValueError):
        return False
    return found[0].shape == found[1].shape and bool(
        (found[0] - found[1]).abs().max() <= rounding(base) * found[0].abs().max()
    )


def cached_states(base: Any, layout: Layout, cut: int) -> list[Any]:
    """What enters block `cut` for each row of the plan, on the CPU."""
    states: list[Any] = []
    numbers, size = range(len(layout.plan.rows)), layout.plan.settings.batch_size
    for start in range(0, len(numbers), size):
        reached = trunk_states(base, layout.batch(numbers[start : start + size]), cut)
        states += [each.cpu() for each in layout.split(reached)]
    return states


def job_trainer(
    model: Any,
    tokenizer: Any,
    plan: BatchPlan,
    dataset: Any,
    collator: Collator,
    positions: Any,
    progress: Snapshots,
    outcome: Outcome,
    on_progress: OnProgress,
) -> Any:
    """An SFTTrainer that runs the rest of the plan, in its order."""
    import torch
    from transformers import TrainerCallback, get_scheduler
    from trl import SFTTrainer

    class JobTrainer(SFTTrainer):  # type: ignore[misc]
        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 0  # nobody reads them here, and counting parameters walks through all modules at each step

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if positions is not None:
                inputs = {**inputs, "shift_labels": positions.set(inputs["labels"])}
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.restore_random()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs is None or "loss" not in logs:
                return
            outcome.log.append({key: float(value) for key, value in logs.items()})
            outcome.steps_done += 1
            check_loss(float(logs["loss"]), plan.settings.max_loss_nats, len(outcome.log))
            progress.after_step(optimizer, outcome.log)
            try:
                on_progress(len(outcome.log), plan.steps)
            except BaseException:  # Ctrl-C: what was done is not done again
                progress.save(optimizer, outcome.log)
                raise
            control.should_training_stop = control.should_training_stop or outcome.stopped_early

    settings, width = plan.settings, model.get_base_model().config.get_text_config().hidden_size
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate_for(width), weight_decay=settings.weight_decay)
    scheduler = get_scheduler(settings.schedule, optimizer, round(settings.warmup_share * plan.steps), plan.steps)
    progress.restore_optimizer(model, optimizer)
    with warnings.catch_warnings():
        # The optimizer's steps were done by the process that was killed.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(plan.steps - math.ceil(len(dataset) / settings.batch_size)):
            scheduler.step()
    trainer = JobTrainer(
        model=model,
        args=trainer_arguments(plan, model),
        train_dataset=dataset,
        data_collator=collator,
        processing_class=tokenizer,
        optimizers=(optimizer, scheduler),
        callbacks=[Watch()],
    )
    # The default callbacks print each log line as a dict and draw a second progress bar.
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def trainer_arguments(plan: BatchPlan, model: Any) -> Any:
    """SFTConfig for one training job; every choice that is not the library's default has its reason here."""
    from trl import SFTConfig

    dtype = str(next(model.parameters()).dtype)
    device = next(model.parameters()).device.type
    arguments = SFTConfig(
        output_dir=tempfile.gettempdir(),
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        logging_strategy="steps",
        per_device_train_batch_size=plan.settings.batch_size,
        num_train_epochs=1,
        seed=plan.seed,
        data_seed=plan.seed,
        max_grad_norm=plan.settings.max_grad_norm,
        # The default replaces a NaN loss by the mean of the others before it is logged.
        logging_nan_inf_filter=False,
        # The data set already holds all epochs in order.
        train_sampling_strategy="sequential",
        # Rows are numbers until they are collated; nothing to tokenise, no column to drop.
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        # TRL's defaults are True; bf16 on a CPU without bf16 units is 19 times slower, and checkpointing trades time
        # for memory that a frozen trunk does not need.
        bf16=device == "cuda" and dtype == "torch.bfloat16",
        fp16=False,
        gradient_checkpointing=False,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        disable_tqdm=True,
        packing=False,
        # LoRA does not reach the router of a mixture of experts, and its auxiliary loss wants a two-dimensional mask.
        router_aux_loss_coef=0.0,
    )
    # One model on one GPU: where several are visible the Trainer would ask for nn.DataParallel, which TRL refuses.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_loss(loss: float, bound: float, step: int) -> None:
    """Raise DivergedError where a loss, in nats per token, is not finite or above its bound."""
    if not math.isfinite(loss) or loss > bound:
        raise DivergedError(
            f"The loss was {loss:g} nats per token at step {step} (bound: {bound:g}); lower lora.learning_rate."
        )
