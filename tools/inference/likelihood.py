"""Log-likelihood of given replies."""

from collections.abc import Sequence
from typing import Any

from nslora.tools.inference.decoder import compact_head
from nslora.tools.inference.generation import copied, prefix_cache

Pair = tuple[Sequence[int], Sequence[int]]  # (prompt ids, completion ids)


def completion_losses(model: Any, rows: Sequence[Pair], *, pad_id: int, batch_size: int, shared: int) -> list[float]:
    """Mean negative log-likelihood of each completion given its prompt, nats per completion token.

    shared: tokens that all prompts begin with and that go through the model once, 0 for none. Only the positions that
    predict a completion go through the vocabulary.
    """
    import torch

    if not rows:
        return []
    losses: dict[int, float] = {}
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]) + len(rows[i][1]), i))
    with torch.inference_mode():
        prefix = prefix_cache(model, rows[0][0][:shared]) if shared else None
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found = batch_losses(model, [rows[i] for i in batch], pad_id, shared, prefix)
            losses.update(zip(batch, found, strict=True))
    return [losses[i] for i in range(len(rows))]


def batch_losses(model: Any, rows: Sequence[Pair], pad_id: int, shared: int, prefix: Any) -> list[float]:
    """`completion_losses` of one batch: tails padded on the right, behind the cached keys and values of the prefix."""
    import torch

    shared = shared if prefix is not None else 0
    width = max(len(prompt) + len(completion) for prompt, completion in rows) - shared
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), shared + width), dtype=torch.long)
    scored = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion) - shared
        ids[i, :end] = torch.tensor([*prompt[shared:], *completion])
        mask[i, : shared + end] = 1
        scored[i, len(prompt) - shared : end] = True
    ids, scored = ids.to(model.device), scored.to(model.device)
    cache = copied(prefix, len(rows))
    predicts = scored[:, 1:]
    with compact_head(model) as positions:  # the model's own head, which may scale or cap its logits
        positions.mask = predicts
        logits = (
            model(
                input_ids=ids, attention_mask=mask.to(model.device), past_key_values=cache, use_cache=cache is not None
            )
            .logits[0]
            .float()
        )
    nll = torch.nn.functional.cross_entropy(logits, ids[:, 1:][predicts], reduction="none")
    sums = torch.zeros(len(rows), device=nll.device).index_add_(0, predicts.nonzero()[:, 0], nll)
    return [float(loss) for loss in (sums / scored.sum(dim=1)).cpu()]
