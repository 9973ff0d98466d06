"""What a burst or a batch needs of memory, and what is there."""

from typing import Any

from nslora.tools.errors import ModelError
from nslora.tools.inference.generation import changes_positions
from nslora.tools.training.batches import Layout, PaddedLayout

LOWER = "lower lora.batch_size or lora.top_blocks, or shorten the prompt's demonstrations"
SHARE_FOR_GENERATION = 0.25     # of the free memory, for keys and values of one batch
# Tensors of hidden and of intermediate width that autograd keeps per token and block of a Llama-shaped model with LoRA
# on every linear layer: norms, q, k, v, attention output, residuals, and gate, up and their product.
KEPT_HIDDEN, KEPT_INTERMEDIATE = 16, 5
KEPT_SCORES = 3                 # logits, their copy in float32 and its log-softmax, per scored token
KEPT_LOGITS = 4                 # logits, their softmax, entropy and gradient, per token that goes through the head


def free_bytes(model: Any) -> int:
    """Memory that is free on the model's device."""
    import psutil
    import torch

    if model.device.type == "cuda":
        # What PyTorch's allocator holds without using it is free for us.
        held = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        return int(torch.cuda.mem_get_info(model.device)[0] + held)
    return int(psutil.virtual_memory().available)


def burst_bytes(model: Any, layout: Layout, trained_blocks: int, *, cached: bool, compact: bool) -> int:
    """An upper estimate of what a burst takes on the model's device beside the base: activations of one batch, logits,
    and on a CPU the cached states, which are kept in its memory wherever the model is.

    cached: the trunk's states are kept. compact: only supervised positions go through the vocabulary.
    """
    config, rows = model.config.get_text_config(), layout.plan.rows
    size = next(model.parameters()).element_size()
    batch = min(layout.plan.settings.batch_size, len(rows))
    longest = max(len(row) for row in rows)
    tokens = batch * longest if isinstance(layout, PaddedLayout) else layout.shared + batch * layout.width
    hidden = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    if not isinstance(intermediate, int):       # one a block
        intermediate = max(intermediate)
    activations = tokens * trained_blocks * (KEPT_HIDDEN * hidden + KEPT_INTERMEDIATE * intermediate) * size
    scored = batch * max(len(row.completion_ids) for row in rows) if compact else tokens
    logits = scored * config.vocab_size * KEPT_LOGITS * 4
    states = len(rows) * longest * hidden * size if cached and model.device.type == "cpu" else 0
    return int(activations + logits + states)


def refuse_what_does_not_fit(model: Any, layout: Layout, trained_blocks: int, *, cached: bool,
                             compact: bool) -> None:
    """Raise ModelError, with the need, what is there and what to lower, where a burst would run out of memory."""
    need, free = burst_bytes(model, layout, trained_blocks, cached=cached, compact=compact), free_bytes(model)
    if need > free:
        raise ModelError(
            f"A burst of training needs about {need / 2**30:.1f} GiB beside the model, {free / 2**30:.1f} GiB are "
            f"free: {LOWER}.")


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
    all_heads = getattr(config, "num_attention_heads", None) or 1       # without attention: one state of hidden width
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
