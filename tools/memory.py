"""What a burst or a batch needs of memory, and what is there."""

from typing import Any

from nslora.tools.burst_plan import Layout, PaddedLayout
from nslora.tools.errors import ModelError

SHARE_FOR_GENERATION = 0.25     # of the free memory, for keys and values of one batch
# Tensors of hidden and of intermediate width that autograd keeps per token and block of a Llama-shaped model with LoRA
# on every linear layer: norms, q, k, v, attention output, residuals, and gate, up and their product.
KEPT_HIDDEN, KEPT_INTERMEDIATE = 16, 5
KEPT_LOGITS = 4                 # logits, their softmax, entropy and gradient, per token that goes through the head


def free_bytes(model: Any) -> int:
    """Memory that is free on the model's device."""
    import psutil
    import torch

    if model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(model.device)[0])
    return int(psutil.virtual_memory().available)


def burst_bytes(model: Any, layout: Layout, trained_blocks: int, *, cached: bool, compact: bool) -> int:
    """An upper estimate of what a burst takes beside the base: activations of one batch, logits, cached states.

    cached: the trunk's states are kept. compact: only supervised positions go through the vocabulary.
    """
    config, rows = model.config.get_text_config(), layout.plan.rows
    size = next(model.parameters()).element_size()
    batch = min(layout.plan.settings.batch_size, len(rows))
    longest = max(len(row) for row in rows)
    tokens = batch * longest if isinstance(layout, PaddedLayout) else layout.shared + batch * layout.width
    hidden = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    activations = tokens * trained_blocks * (KEPT_HIDDEN * hidden + KEPT_INTERMEDIATE * intermediate) * size
    scored = batch * max(len(row.completion_ids) for row in rows) if compact else tokens
    logits = scored * config.vocab_size * KEPT_LOGITS * 4
    states = len(rows) * longest * hidden * size if cached else 0
    return int(activations + logits + states)


def refuse_what_does_not_fit(model: Any, layout: Layout, trained_blocks: int, *, cached: bool,
                             compact: bool) -> None:
    """Raise ModelError, with the need, what is there and what to lower, where a burst would run out of memory."""
    need, free = burst_bytes(model, layout, trained_blocks, cached=cached, compact=compact), free_bytes(model)
    if need > free:
        raise ModelError(
            f"A burst of training needs about {need / 2**30:.1f} GiB beside the model, {free / 2**30:.1f} GiB are "
            "free: lower lora.batch_size or lora.top_blocks, or shorten the prompt's demonstrations.")


def generation_batch(model: Any, tokens: int, largest: int) -> int:
    """How many rows of so many tokens (prompt and reply) fit one batch, at most `largest`, at least 1."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = next(model.parameters()).element_size()
    row_bytes = 2 * config.num_hidden_layers * heads * width * tokens * size
    return max(1, min(largest, int(free_bytes(model) * SHARE_FOR_GENERATION / row_bytes)))
