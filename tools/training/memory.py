"""Memory that a training job needs."""

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
    """Estimate, from above, the memory that a training job takes on the model's device beside the base.

    Args:
        model: The base.
        layout: The layout of the job's batches.
        trained_blocks: Blocks that gradients pass through.
        cached: Whether the hidden states below these blocks are cached (in main memory, wherever the model is).
        compact: Whether only supervised positions go through the head.

    Returns:
        Bytes of the activations and logits of one batch, and of the cached states if the model is on a CPU.
    """
    config, rows = model.config.get_text_config(), layout.plan.rows
    size = next(model.parameters()).element_size()
    batch = min(layout.plan.settings.batch_size, len(rows))
    longest = max(len(row) for row in rows)
    tokens = batch * longest if isinstance(layout, PaddedLayout) else layout.shared + batch * layout.width
    hidden = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    if not isinstance(intermediate, int):  # one width per block
        intermediate = max(intermediate)
    activations = tokens * trained_blocks * (KEPT_HIDDEN * hidden + KEPT_INTERMEDIATE * intermediate) * size
    scored = batch * max(len(row.completion_ids) for row in rows) if compact else tokens
    logits = scored * config.vocab_size * KEPT_LOGITS * 4
    states = len(rows) * longest * hidden * size if cached and model.device.type == "cpu" else 0
    return int(activations + logits + states)


def refuse_what_does_not_fit(model: Any, layout: Layout, trained_blocks: int, *, cached: bool, compact: bool) -> None:
    """Check that a training job fits the free memory; the arguments are those of `job_bytes`.

    Raises:
        ModelError: If it does not fit.
    """
    need, free = job_bytes(model, layout, trained_blocks, cached=cached, compact=compact), free_bytes(model)
    if need > free:
        raise ModelError(
            f"A training job needs about {need / 2**30:.1f} GiB beside the model, {free / 2**30:.1f} GiB are free: "
            f"{LOWER}."
        )
