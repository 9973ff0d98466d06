"""The frozen trunk: the blocks below the lowest LoRA layer.

Their output for a row is the same in every epoch, so a training job computes it once. Together with the compact head
(logits at supervised positions only) a step takes 0.28-0.30 of plain SFTTrainer's time, with bit-identical adapters at
equal padding; measured with SmolLM2-135M, LoRA on blocks 20-29, fp32, one thread.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nslora.tools.inference.decoder import blocks_of, inputs_of

LARGEST_TRUNK_DIFFERENCE = 1e-4  # relative; an architecture that treats its embeddings specially differs by far more


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass after the trunk's last block."""


def trunk_states(model: Any, batch: dict[str, Any], cut: int) -> Any:
    """Return the input of block `cut`, (B, T, H), for a batch of a layout."""
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
    """Reduce the model to blocks `cut` and above, so that it takes cached states as `inputs_embeds`.

    The names of its parameters shift meanwhile, so save nothing by name inside.
    """
    from torch.nn import ModuleList

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    setattr(decoder, name, ModuleList(list(blocks)[cut:]))
    try:
        yield
    finally:
        setattr(decoder, name, blocks)


def trunk_is_exact(model: Any, batch: dict[str, Any], cut: int) -> bool:
    """Return whether the top blocks compute from the trunk's states what the whole model computes from token ids.

    An architecture that scales its embeddings, adds positions to them or routes by block number fails, and trains
    without a frozen trunk.
    """
    import torch

    if model.config.model_type == "mpt":
        return False  # with PEFT 0.21 it takes no `inputs_embeds`
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
    """Return whether the base draws random numbers in training (dropout, a router's jitter), without LoRA's dropout.

    torch's dropout modules have `p`. Attention that drops inside its kernel has an attribute with "drop" in its name,
    and routers have one with "jitter".

    Args:
        model: The base.
        cut: Look only below this block; None looks everywhere.
    """
    from torch.nn.modules.dropout import _DropoutNd

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    above = {id(module) for block in blocks[cut:] for module in block.modules()} if cut is not None else set()
    below = [module for path, module in decoder.named_modules() if id(module) not in above and "lora_" not in path]
    return any(
        ((key == "p" and isinstance(module, _DropoutNd)) or "drop" in key or "jitter" in key)
        and isinstance(value, float)
        and value > 0
        for module in below
        for key, value in vars(module).items()
    )


def lowest_trained_block(model: Any, trainable: Sequence[str]) -> int:
    """Return the index of the lowest block with one of the `trainable` parameters; 0 if one lies outside the blocks."""
    _, name = blocks_of(model)
    found = [re.search(rf"\.{name}\.(\d+)\.", parameter) for parameter in trainable]
    return min(int(match[1]) if match else 0 for match in found)
