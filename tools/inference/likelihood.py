"""Log-likelihood of given replies."""

from collections.abc import Sequence
from typing import Any

from nslora.tools.inference.decoder import compact_head
from nslora.tools.inference.generation import copied, prefix_cache
from nslora.tools.inference.memory import halving_batches

Pair = tuple[Sequence[int], Sequence[int]]  # (prompt ids, completion ids)


def completion_losses(model: Any, rows: Sequence[Pair], *, pad_id: int, batch_size: int, shared: int) -> list[float]:
    """Return the mean negative log-likelihood of each completion after its prompt, nats per completion token.

    The head computes logits only for the positions that predict a completion. A batch that runs out of memory is
    halved.

    Args:
        model: A causal language model in eval mode.
        rows: Token ids of prompt and completion.
        pad_id: Token id of the padding.
        batch_size: Rows of the first batch.
        shared: Tokens that all prompts begin with and that are computed once, 0 for none.

    Raises:
        ModelError: If a batch of one row runs out of memory.
    """
    import torch

    if not rows:
        return []
    losses: dict[int, float] = {}

    def score_rest(size: int) -> None:
        rest = sorted(set(range(len(rows))) - set(losses), key=lambda i: (len(rows[i][0]) + len(rows[i][1]), i))
        for start in range(0, len(rest), size):
            batch = rest[start : start + size]
            found = _batch_losses(model, [rows[i] for i in batch], pad_id, shared, prefix)
            losses.update(zip(batch, found, strict=True))

    with torch.inference_mode():
        prefix = prefix_cache(model, rows[0][0][:shared]) if shared else None
        halving_batches(score_rest, batch_size)
    return [losses[i] for i in range(len(rows))]


def _batch_losses(model: Any, rows: Sequence[Pair], pad_id: int, shared: int, prefix: Any) -> list[float]:
    """Score one batch: each row without the shared prefix, padded on the right."""
    import torch

    width = max(len(prompt) + len(completion) for prompt, completion in rows) - shared
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), shared + width), dtype=torch.long)
    scored = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion) - shared
        ids[i, :end] = torch.tensor([*prompt[shared:], *completion])
        mask[i, : shared + end] = 1
        scored[i, len(prompt) - shared : end] = True
    ids, mask, scored = (tensor.to(model.device) for tensor in (ids, mask, scored))
    cache, predicts = copied(prefix, len(rows)), scored[:, 1:]
    with compact_head(model) as positions:  # the model's own head, which may scale or cap its logits
        positions.mask = predicts
        output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None)
    nll = torch.nn.functional.cross_entropy(output.logits[0].float(), ids[:, 1:][predicts], reduction="none")
    sums = torch.zeros(len(rows), device=nll.device).index_add_(0, predicts.nonzero()[:, 0], nll)
    return [float(loss) for loss in (sums / scored.sum(dim=1)).cpu()]
