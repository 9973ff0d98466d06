"""A causal model's decoder: where its blocks are, what it takes of a batch, and a head for the supervised positions."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def blocks_of(model: Any) -> tuple[Any, str]:
    """The module that holds a causal model's decoder blocks and the attribute's name ('layers', 'h', ...).

    A model that sees has blocks of another kind too: those that write are looked for first.
    Raises ValueError where no module list has as many entries as the config has layers.
    """
    from torch.nn import ModuleList

    count = model.config.get_text_config().num_hidden_layers
    for parent in itertools.chain(model.get_decoder().modules(), model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ModuleList) and len(child) == count:
                return parent, name
    raise ValueError(f"no list of {count} decoder blocks in {type(model).__name__}")


def inputs_of(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What a decoder takes of a batch, on its device."""
    return {key: value.to(model.device) for key, value in batch.items() if key != "labels"}


@contextmanager
def compact_head(model: Any) -> Iterator["SupervisedPositions"]:
    """While inside, the decoder hands on only the positions that the current batch supervises."""
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


class SupervisedPositions:
    """Which positions of the current batch predict a scored token."""

    def __init__(self) -> None:
        self.mask: Any = None  # (B, T-1) bool, None: all positions

    def set(self, labels: Any) -> Any:
        """Note the positions of `labels` (B, T) and return their targets, (1, N), as `shift_labels`."""
        self.mask = labels[:, 1:] != -100
        return labels[:, 1:][self.mask][None]
