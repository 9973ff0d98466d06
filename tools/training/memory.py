"""What a training job needs of memory, and what is there."""

from typing import Any

from nslora.tools.errors import ModelError
from nslora.tools.inference.memory import free_bytes
from nslora.tools.training.batches import Layout, PaddedLayout

LOWER = "lower lora.batch_size or lora.top_blocks, or shorten the prompt's demonstrations"
# Tensors of hidden and of intermediate width that autograd keeps per token and block of a Llama-shaped model with LoRA
# on every linear layer: norms, q, k, v, attention output, residuals, and gate, up and their product.
KEPT_HIDDEN, KEPT_INTERMEDIATE = 16, 5
KEPT_LOGITS = 4  # logits, their softmax, entropy and gradient, per token that goes through the head


def job_bytes(model: Any, layout: Layout, trained_blocks: int, *, cached: bool, compact: bool) -> int:
    """An upper estimate of what a training job takes on the model's device beside the base: activations of one batch,
    logits, and on a CPU the cached states, which are kept in its memory wherever the model is.

    cached: the trunk's states are kept. compact: only supervised positions go through the vocabulary.
    """
    config, rows = model.config.get_text_config(), layout.plan.rows
    size = next(model.parameters()).element_size()
    batch = min(layout.plan.settings.batch_size, len(rows))
    longest = max(len(row) for row in rows)
    tokens = batch * longest if isinstance(layout, PaddedLayout) else layout.shared + batch * layout.width
    hidden = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    if not isinstance(intermediate, int):  # one a block
        intermediate = max(intermediate)
    activations = tokens * trained_blocks * (KEPT_HIDDEN * hidden + KEPT_INTERMEDIATE * intermediate) * size
    scored = batch * max(len(row.completion_ids) for row in rows) if compact else tokens
    logits = scored * config.vocab_size * KEPT_LOGITS * 4
    states = len(rows) * longest * hidden * size if cached and model.device.type == "cpu" else 0
    return int(activations + logits + states)


def refuse_what_does_not_fit(model: Any, layout: Layout, trained_blocks: int, *, cached: bool, compact: bool) -> None:
    """Raise ModelError, with the need, what is there and what to lower, where a job would run out of memory."""
    need, free = job_bytes(model, layout, trained_blocks, cached=cached, compact=compact), free_bytes(model)
    if need > free:
        raise ModelError(
            f"A burst of training needs about {need / 2**30:.1f} GiB beside the model, {free / 2**30:.1f} GiB are "
            f"free: {LOWER}."
        )
