"""What a training job or a batch needs of memory, and what is there."""

from typing import Any

from nslora.tools.inference.generation import changes_positions

SHARE_FOR_GENERATION = 0.25  # of the free memory, for keys and values of one batch
KEPT_SCORES = 3  # logits, their copy in float32 and its log-softmax, per scored token


def free_bytes(model: Any) -> int:
    """Memory that is free on the model's device."""
    import psutil
    import torch

    if model.device.type == "cuda":
        # What PyTorch's allocator holds without using it is free for us.
        held = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        return int(torch.cuda.mem_get_info(model.device)[0] + held)
    return int(psutil.virtual_memory().available)


def ran_out(error: RuntimeError) -> bool:
    """Whether torch found no memory, on a GPU or on a CPU: what an estimate missed, or what another process took."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def generation_batch(model: Any, tokens: int, largest: int) -> int:
    """How many rows of so many tokens (prompt and reply) fit one batch, at most `largest`, at least 1.

    One alone where what a row gets would depend on the longest row beside it.
    """
    if changes_positions(model, tokens):
        return 1
    config = model.config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", None) or 1  # without attention: one state of hidden width
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    size = next(model.parameters()).element_size()
    row_bytes = 2 * config.num_hidden_layers * heads * width * tokens * size
    return max(1, min(largest, int(free_bytes(model) * SHARE_FOR_GENERATION / row_bytes)))


def scoring_batch(model: Any, tokens: int, completion: int, largest: int) -> int:
    """How many references of at most `completion` tokens (`tokens` with the prompt) fit one batch, at least 1."""
    row_bytes = completion * model.config.get_text_config().vocab_size * KEPT_SCORES * 4
    fitting = int(free_bytes(model) * SHARE_FOR_GENERATION / row_bytes) if row_bytes else largest
    return max(1, min(generation_batch(model, tokens, largest), fitting))
