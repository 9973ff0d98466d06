"""A causal model's decoder: its blocks, its inputs, its limits, and a head for supervised positions only."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nslora.tools.errors import ModelError

WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")


def blocks_of(model: Any) -> tuple[Any, str]:
    """Return the module that holds a causal model's decoder blocks, and the attribute's name ('layers', 'h', ...).

    The decoder is searched before the rest of the model, because a vision tower has blocks too.

    Raises:
        ModelError: If no module list has as many entries as the config has layers.
    """
    from torch.nn import ModuleList

    count = model.config.get_text_config().num_hidden_layers
    for parent in itertools.chain(model.get_decoder().modules(), model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ModuleList) and len(child) == count:
                return parent, name
    raise ModelError(
        f"{type(model).__name__} has no list of {count} decoder blocks, as its config says: choose a causal model."
    )


def inputs_of(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch without its labels, on the model's device."""
    return {key: value.to(model.device) for key, value in batch.items() if key != "labels"}


def beyond_window(model: Any, longest: int) -> bool:
    """Return whether a row of `longest` tokens outgrows the attention's window or chunk, or changes the positions.

    A shared prefix and a frozen trunk are exact only within these limits.
    """
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in WINDOWS]
    return changes_positions(model, longest) or any(window and longest > window for window in windows)


def changes_positions(model: Any, longest: int) -> bool:
    """Return whether a row of `longest` tokens changes the rotary frequencies of its batch (LongRoPE, as in Phi-3)."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return bool(rope.get("rope_type") == "longrope" and limit and longest > limit)


class SupervisedPositions:
    """The positions of the current batch that predict a scored token."""

    def __init__(self) -> None:
        self.mask: Any = None  # (B, T-1) bool; None selects all positions

    def set(self, labels: Any) -> Any:
        """Select the positions of `labels` (B, T) and return their targets, (1, N), as `shift_labels`."""
        self.mask = labels[:, 1:] != -100
        return labels[:, 1:][self.mask][None]


@contextmanager
def compact_head(model: Any) -> Iterator[SupervisedPositions]:
    """Make the decoder return only the selected positions, so that the head computes no other logits."""
    positions = SupervisedPositions()
    decoder, _ = blocks_of(model)

    def keep(_: Any, __: Any, output: Any) -> Any:
        if positions.mask is not None:
            output.last_hidden_state = output.last_hidden_state[:, :-1][positions.mask][None]
        return output

    handle = decoder.register_forward_hook(keep)
    try:
        yield positions
    finally:
        handle.remove()
