"""One LoRA training job with TRL's SFTTrainer.

Used of SFTTrainer: the training loop, the loss, the optimizer step with gradient clipping, the learning rate schedule
and the callbacks. Not used:

- data preparation: rows arrive as token ids (`batches.py`), from the chat template that generation uses;
- saving: `snapshots.py` saves each step, so that a killed job resumes and ends with the same adapter;
- evaluation: the graph measures the reward of whole replies.

SFTTrainer is subclassed because the compact head needs the labels of a batch just before its forward pass, which only
`compute_loss` sees, and because Trainer counts all parameters at each step for a figure that nobody reads.
"""

import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nslora.tools.errors import DivergedError
from nslora.tools.policy import STEP_VALUES, OnStep
from nslora.tools.training.batches import BatchPlan
from nslora.tools.training.frozen_trunk import without_trunk
from nslora.tools.training.memory import refuse_what_does_not_fit
from nslora.tools.training.outcome import Outcome
from nslora.tools.training.processes import processes
from nslora.tools.training.shortcuts import Collator, Shortcuts, cached_states, enter_graphs, exact_shortcuts
from nslora.tools.training.snapshots import Snapshots, moments

REPEATABLE = "repeatable"  # key in `found_exact`: all kernels of this base add in a fixed order
NOT_REPEATABLE = "not repeatable to the bit: an operation of this model has no deterministic kernel on this GPU"


def train(
    model: Any,
    tokenizer: Any,
    plan: BatchPlan,
    progress: Snapshots,
    found_exact: dict[str, bool],
    on_progress: OnStep,
) -> Outcome:
    """Train the active adapter of a PeftModel in place.

    Args:
        model: The PeftModel.
        tokenizer: The tokenizer, which TRL requires.
        plan: Rows, order and settings.
        progress: Snapshots of this job; the newest one is restored first.
        found_exact: Answers of earlier probes of this base. The caller keeps it, so that each probe runs once.
        on_progress: Called with (steps done, all steps, `STEP_VALUES`) after each step.

    Raises:
        DivergedError: If a loss is not finite or above `settings.max_loss_nats`.
        ModelError: If the job does not fit the memory.
    """
    started = time.monotonic()
    progress.restore(model)
    outcome = Outcome(plan, log=list(progress.log), moments=progress.moments)
    with ExitStack() as stack:
        if repeatable := found_exact.get(REPEATABLE, True):
            stack.enter_context(fixed_order_of_sums(model.device))
        base = model.get_base_model()
        shortcuts = exact_shortcuts(stack, model, plan, found_exact)
        layout, trunk, compact = shortcuts.layout, shortcuts.trunk, shortcuts.positions is not None
        trained_blocks = base.config.get_text_config().num_hidden_layers - shortcuts.lowest
        refuse_what_does_not_fit(base, layout, trained_blocks, cached=trunk > 0, compact=compact)
        outcome.fast_path = shortcuts.words if repeatable else f"{shortcuts.words}, {NOT_REPEATABLE}"
        if len(outcome.log) < plan.steps and not outcome.stopped_early:
            collator = Collator(layout, cached_states(base, layout, trunk) if trunk else None)
            if trunk:
                stack.enter_context(without_trunk(base, trunk))
            trainer = job_trainer(model, tokenizer, collator, shortcuts, progress, outcome, on_progress)
            if graphs := enter_graphs(stack, model, collator, autocast=trainer.args.bf16):
                outcome.fast_path += f", {graphs}"
            stack.enter_context(kept_in_training(model, trainer.optimizer))
            try:
                trainer.train()
                outcome.moments = moments(model, trainer.optimizer)
            finally:
                # Each SFTTrainer wraps the model's forward, and the wrappers would pile up.
                vars(base).pop("forward", None)
                trainer.accelerator.free_memory()
    model.eval()
    outcome.wall_s = time.monotonic() - started
    return outcome


@contextmanager
def kept_in_training(model: Any, optimizer: Any) -> Iterator[None]:
    """Keep the model in training mode, and let the optimizer drop its gradients.

    Trainer does both at each step by walking through all modules. On a GPU this takes longer than the step itself.
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
    """Use deterministic kernels on a GPU, so that the same seed gives the same weights.

    torch raises RuntimeError at an operation that has no such kernel; `lacks_fixed_order` recognises it.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    memory: Any = torch.utils.deterministic
    fill, enabled = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # With warn_only, attention would still take its usual backward kernel.
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a debugging aid, and slow
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill


def lacks_fixed_order(error: RuntimeError) -> bool:
    """Return whether the error says that torch has no deterministic kernel for an operation."""
    return "deterministic" in str(error)


def job_trainer(
    model: Any,
    tokenizer: Any,
    collator: Collator,
    shortcuts: Shortcuts,
    progress: Snapshots,
    outcome: Outcome,
    on_progress: OnStep,
) -> Any:
    """Make an SFTTrainer that runs the rest of a plan in its order; the arguments are those of `train`."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback, get_scheduler
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTTrainer

    plan, positions = outcome.plan, shortcuts.positions
    settings, steps_done = plan.settings, len(outcome.log)

    class JobTrainer(SFTTrainer):  # type: ignore[misc]
        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 0

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
            outcome.log.append({key: float(logs[key]) for key in STEP_VALUES if key in logs})
            outcome.steps_done += 1
            check_loss(float(logs["loss"]), settings.max_loss_nats, len(outcome.log))
            progress.after_step(optimizer, outcome.log)
            try:
                on_progress(len(outcome.log), plan.steps, outcome.log[-1])
            except BaseException:  # Ctrl-C: keep this step
                progress.save(optimizer, outcome.log)
                raise
            control.should_training_stop = control.should_training_stop or outcome.stopped_early

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = settings.rate_for(model.get_base_model().config.get_text_config().hidden_size)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=settings.weight_decay)
    scheduler = get_scheduler(settings.schedule, optimizer, round(settings.warmup_share * plan.steps), plan.steps)
    progress.restore_optimizer(model, optimizer)
    with warnings.catch_warnings():
        # The killed process did the optimizer's steps.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(steps_done):
            scheduler.step()
    trainer = JobTrainer(
        model=model,
        args=_trainer_arguments(plan, model),
        train_dataset=Dataset.from_dict({"rows": plan.rest(steps_done)}),
        data_collator=collator,
        processing_class=tokenizer,
        optimizers=(optimizer, scheduler),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)  # prints each log entry
    return trainer


def _trainer_arguments(plan: BatchPlan, model: Any) -> Any:
    """Return the SFTConfig of one training job; each choice that differs from the default has its reason here."""
    from trl import SFTConfig

    device, dtype = model.device.type, str(next(model.parameters()).dtype)
    arguments = SFTConfig(
        output_dir=tempfile.gettempdir(),
        save_strategy="no",
        logging_steps=1,
        # An item is a whole shard of a batch: each process gets its own, or one process all of them in turn.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.shards // processes(),
        num_train_epochs=1,
        seed=plan.seed,
        max_grad_norm=plan.settings.max_grad_norm,
        # By default the log replaces a NaN loss by the mean of the others.
        logging_nan_inf_filter=False,
        # The data set already contains all epochs in order.
        train_sampling_strategy="sequential",
        # Rows are numbers until they are collated: nothing to tokenize, no column to drop.
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        # TRL's defaults are True. bf16 on a CPU without bf16 units is 19 times slower, and checkpointing saves memory
        # that a frozen trunk does not need.
        bf16=device == "cuda" and dtype == "torch.bfloat16",
        gradient_checkpointing=False,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        disable_tqdm=True,
        # LoRA does not train the router of a mixture of experts, and its auxiliary loss needs a two-dimensional mask.
        router_aux_loss_coef=0.0,
    )
    # One model on one GPU: if several are visible, Trainer asks for nn.DataParallel, which TRL does not support.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_loss(loss: float, bound: float, step: int) -> None:
    """Check the loss of a step, in nats per token.

    Raises:
        DivergedError: If the loss is not finite or above `bound`.
    """
    if not math.isfinite(loss) or loss > bound:
        raise DivergedError(
            f"The loss was {loss:g} nats per token at step {step} (bound: {bound:g}): lower lora.learning_rate."
        )
