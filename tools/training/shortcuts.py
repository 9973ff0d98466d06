"""The exact shortcuts of a training job: which ones its base supports, and the batches that use them.

The choice depends on the whole plan and never on the steps that are left. A shared prefix equals the padded layout only
up to rounding, so a resumed job must use the shortcuts that it began with.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from nslora.tools.inference.decoder import beyond_window, blocks_of, compact_head, inputs_of
from nslora.tools.inference.generation import rounding
from nslora.tools.training.batches import BatchPlan, Layout, PaddedLayout, SharedPrefixLayout, shared_layout
from nslora.tools.training.cuda_graphs import LEAST_STEPS, captured_decoder
from nslora.tools.training.frozen_trunk import drops_out, lowest_trained_block, trunk_is_exact, trunk_states

LARGEST_TRUNK_BYTES = 2 << 30  # of cached states; a job that needs more trains without a frozen trunk


@dataclass(frozen=True)
class Shortcuts:
    """The shortcuts of one training job.

    Attributes:
        layout: The layout of its batches.
        words: The shortcuts in words, for the record.
        lowest: The lowest block that trains.
        positions: `SupervisedPositions` of the compact head; None if all positions go through the head.
        trunk: Number of frozen blocks whose output is cached, 0 for none.
    """

    layout: Layout
    words: str
    lowest: int
    positions: Any = None
    trunk: int = 0


@dataclass
class Collator:
    """Turns row numbers into a batch; if the trunk is frozen, its cached states replace the token ids."""

    layout: Layout
    states: list[Any] | None = None

    def __call__(self, items: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        numbers = [number for item in items for number in item["rows"]]
        batch = self.layout.batch(numbers or [0])
        if not numbers:  # a shard of a last batch that is short: it teaches nothing
            batch["labels"].fill_(-100)
        if self.states is not None:
            del batch["input_ids"]
            batch["inputs_embeds"] = self.layout.join([self.states[number] for number in numbers])
        return batch


def probed(found: dict[str, bool], name: str, probe: Callable[[], bool]) -> bool:
    """Return the answer to a probe, which runs once per base."""
    if name not in found:
        found[name] = probe()
    return found[name]


def exact_shortcuts(stack: ExitStack, model: Any, plan: BatchPlan, found_exact: dict[str, bool]) -> Shortcuts:
    """Choose the shortcuts that are exact for this model and plan.

    Args:
        stack: Enters the compact head.
        model: A PeftModel whose active adapter trains.
        plan: The training job.
        found_exact: Answers of earlier probes of this base; new ones are added.
    """
    base = model.get_base_model()
    lowest = lowest_trained_block(base, [name for name, p in model.named_parameters() if p.requires_grad])
    layout: Layout = PaddedLayout(plan)
    if not plan.settings.fast or plan.shards > 1:  # other processes would not share what is cached here
        return Shortcuts(layout, f"plain ({plan.shards} shards)" if plan.shards > 1 else "plain (switched off)", lowest)
    positions = stack.enter_context(compact_head(base))
    used = ["compact head"]
    model.eval()
    if beyond_window(base, layout.width):
        return Shortcuts(layout, "compact head (rows outgrow the model's sliding window)", lowest, positions)
    packed = shared_layout(plan) if plan.settings.share_prefix and not drops_out(base) else None
    if packed is not None and probed(found_exact, "shared prefix", lambda: _layouts_agree(base, plan, packed)):
        layout = packed
        used.append(f"shared prefix of {packed.shared} tokens")

    def trunk_works() -> bool:
        return trunk_is_exact(base, layout.batch([0]), lowest)

    pays = lowest > 0 and len(plan.order) > len(plan.rows) and _fits_memory(base, plan) and not drops_out(base, lowest)
    if not pays or not probed(found_exact, f"trunk {lowest} {type(layout).__name__}", trunk_works):
        return Shortcuts(layout, ", ".join(used), lowest, positions)
    used.append(f"frozen trunk of {lowest} blocks")
    return Shortcuts(layout, ", ".join(used), lowest, positions, trunk=lowest)


def _fits_memory(base: Any, plan: BatchPlan) -> bool:
    """Return whether the cached states of all rows are small enough."""
    longest, hidden = max(len(row) for row in plan.rows), base.config.get_text_config().hidden_size
    return bool(len(plan.rows) * longest * hidden * next(base.parameters()).element_size() <= LARGEST_TRUNK_BYTES)


def _layouts_agree(base: Any, plan: BatchPlan, packed: SharedPrefixLayout) -> bool:
    """Return whether two rows get the same hidden states in both layouts, up to rounding."""
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
    padded, shared = found
    return padded.shape == shared.shape and bool((padded - shared).abs().max() <= rounding(base) * padded.abs().max())


def cached_states(base: Any, layout: Layout, cut: int) -> list[Any]:
    """Compute the input of block `cut` for each row of the plan, on the CPU."""
    states: list[Any] = []
    numbers, size = range(len(layout.plan.rows)), layout.plan.settings.batch_size
    for start in range(0, len(numbers), size):
        reached = trunk_states(base, layout.batch(numbers[start : start + size]), cut)
        states += [each.cpu() for each in layout.split(reached)]
    return states


def enter_graphs(stack: ExitStack, model: Any, collator: Collator, *, autocast: bool) -> str:
    """Record CUDA graphs for the frequent batches of a plan, if the model is on a GPU and draws nothing at random.

    Args:
        stack: Enters the recorded decoder.
        model: A PeftModel whose active adapter trains.
        collator: Makes the batches.
        autocast: Whether the trainer computes in bfloat16 by autocast.

    Returns:
        A note for the record; empty if there was nothing to record.
    """
    base, settings = model.get_base_model(), collator.layout.plan.settings
    often = [numbers for numbers, steps in collator.layout.kinds().items() if steps >= LEAST_STEPS]
    if model.device.type != "cuda" or not settings.fast or settings.dropout or not often or drops_out(base):
        return ""
    captured = stack.enter_context(captured_decoder(blocks_of(base)[0]))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = [inputs_of(base, collator([{"rows": list(numbers)}])) for numbers in often]
    notes = [captured.record(batch, trainable, autocast=autocast) for batch in batches]
    return ", ".join(dict.fromkeys(note or "CUDA graphs" for note in notes))
