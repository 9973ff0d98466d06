"""Two exact short cuts of LoRA training: the frozen trunk and the compact head.

Trunk: the blocks below the lowest LoRA layer are frozen, so their output for a row is the same in every epoch; it is
computed once a burst. Head: logits are wanted only where a position is supervised. Measured with SmolLM2-135M, LoRA on
blocks 20-29, fp32, one thread: 0.28-0.30 of plain SFTTrainer's time a step, with bit-identical adapters at equal
padding.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LARGEST_TRUNK_DIFFERENCE = 1e-4     # of the probe, relative; embeddings that are treated specially are far above


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    """The trunk's last block has answered; the rest of the forward pass is not needed."""


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


def trunk_states(model: Any, batch: dict[str, Any], cut: int) -> Any:
    """What enters block `cut`: (B, T, H). batch: a batch of a layout; its labels are left out."""
    import torch

    decoder, name = blocks_of(model)
    captured: list[Any] = []

    def capture(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = getattr(decoder, name)[cut].register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad():
            decoder(**inputs_of(model, batch), use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return captured.pop()


@contextmanager
def without_trunk(model: Any, cut: int) -> Iterator[None]:
    """While inside, the model consists of blocks `cut` and above and takes cached states as `inputs_embeds`.

    Names of parameters shift meanwhile, so nothing may be saved inside.
    """
    from torch.nn import ModuleList

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    setattr(decoder, name, ModuleList(list(blocks)[cut:]))
    try:
        yield
    finally:
        setattr(decoder, name, blocks)


def inputs_of(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What a decoder takes of a batch, on its device."""
    return {key: value.to(model.device) for key, value in batch.items() if key != "labels"}


def trunk_is_exact(model: Any, batch: dict[str, Any], cut: int) -> bool:
    """Whether the top blocks give on the trunk's states what the whole model gives on the batch's token ids.

    An architecture that scales its embeddings, adds positions to them or routes by block number is found out here,
    and trains in the plain way.
    """
    import torch

    if model.config.model_type == "mpt":
        return False        # PEFT 0.21 lets no states in
    decoder, _ = blocks_of(model)
    inputs = inputs_of(model, batch)
    states = trunk_states(model, batch, cut)
    with torch.no_grad():
        whole = decoder(**inputs, use_cache=False).last_hidden_state
        del inputs["input_ids"]
        try:
            with without_trunk(model, cut):
                top = decoder(inputs_embeds=states, **inputs, use_cache=False).last_hidden_state
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False
    if whole.shape != top.shape:
        return False
    scored = batch["labels"] != -100
    return bool((whole[scored] - top[scored]).abs().max() <= LARGEST_TRUNK_DIFFERENCE * whole[scored].abs().max())


def drops_out(model: Any, cut: int | None = None) -> bool:
    """Whether the base itself draws in training (dropout, jitter of a router): anywhere, or below block `cut`.

    Modules of torch say it with `p`; attention that drops inside its kernel keeps the number as an attribute whose name
    says so, and so do routers that jitter. LoRA's own dropout is none of the base's.
    """
    from torch.nn.modules.dropout import _DropoutNd

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    above = {id(module) for block in blocks[cut:] for module in block.modules()} if cut is not None else set()
    for path, module in decoder.named_modules():
        if id(module) in above or "lora_" in path:
            continue
        if isinstance(module, _DropoutNd) and module.p > 0:
            return True
        if any(("drop" in key or "jitter" in key) and isinstance(value, float) and value > 0
               for key, value in vars(module).items()):
            return True
    return False


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
        self.mask: Any = None       # (B, T-1) bool, None: all positions

    def set(self, labels: Any) -> Any:
        """Note the positions of `labels` (B, T) and return their targets, (1, N), as `shift_labels`."""
        self.mask = labels[:, 1:] != -100
        return labels[:, 1:][self.mask][None]


def lowest_trained_block(model: Any, trainable: Sequence[str]) -> int | None:
    """Index of the lowest block that holds one of the `trainable` parameter names; None where one lies outside them."""
    _, name = blocks_of(model)
    lowest: int | None = None
    for parameter in trainable:
        parts = parameter.split(".")
        if name not in parts or not parts[parts.index(name) + 1].isdigit():
            return None
        block = int(parts[parts.index(name) + 1])
        lowest = block if lowest is None else min(lowest, block)
    return lowest
