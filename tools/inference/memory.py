"""Free memory, and batches that adapt to it."""

from collections.abc import Callable
from typing import Any, TypeVar

from nslora.tools.errors import ModelError
from nslora.tools.inference.decoder import changes_positions

SHARE_FOR_A_BATCH = 0.25  # of the free memory, for one batch on a CPU
SCORE_COPIES = 3  # per scored token: logits, their float32 copy and its log-softmax
T = TypeVar("T")


def free_bytes(model: Any) -> int:
    """Return the free memory on the model's device, in bytes."""
    import psutil
    import torch

    if model.device.type == "cuda":
        # PyTorch's allocator reuses memory that it holds and that no tensor uses.
        held = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        return int(torch.cuda.mem_get_info(model.device)[0] + held)
    return int(psutil.virtual_memory().available)


def first_batch_size(model: Any, tokens: int, largest: int, *, scored: int = 0) -> int:
    """Return the batch size to begin with, from 1 to `largest`.

    On a GPU it is `largest`: an allocation that does not fit raises an error, which `halving_batches` handles. On a
    CPU, Linux grants the allocation and later kills the process, so keys, values and logits are estimated beforehand.
    If positions depend on the longest row of a batch, each row goes alone.

    Args:
        model: A causal language model.
        tokens: Tokens of the longest row, prompt and reply.
        largest: The upper limit.
        scored: Most positions of a row whose logits are kept together.
    """
    if changes_positions(model, tokens):
        return 1
    if model.device.type != "cpu":
        return largest
    config = model.config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", None) or 1  # without attention: one state of hidden width
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    cache_bytes = 2 * config.num_hidden_layers * heads * width * tokens * next(model.parameters()).element_size()
    row_bytes = max(1, cache_bytes, scored * config.vocab_size * SCORE_COPIES * 4)
    return max(1, min(largest, int(free_bytes(model) * SHARE_FOR_A_BATCH / row_bytes)))


def halving_batches(work: Callable[[int], T], largest: int) -> T:
    """Call `work(batch_size)`; each time it runs out of memory, halve the batch size and call it again.

    `work` should keep what it has finished, so that the next call does only the rest.

    Raises:
        ModelError: If a batch of one row does not fit.
    """
    from accelerate.utils import find_executable_batch_size

    size = largest

    def halve() -> int:
        nonlocal size
        size //= 2
        return size

    try:
        result: T = find_executable_batch_size(work, starting_batch_size=largest, reduce_batch_size_fn=halve)()
    except RuntimeError as error:
        if size:
            raise
        raise ModelError(
            "A batch of one row ran out of memory: shorten the prompt's demonstrations, lower max_new_tokens, or "
            "choose a smaller model."
        ) from error
    return result
