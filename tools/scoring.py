"""Log-likelihood of given replies."""

from collections.abc import Sequence
from typing import Any


def completion_losses(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, pad_id: int,
                      batch_size: int) -> list[float]:
    """Mean negative log-likelihood of each completion given its prompt, nats per completion token.

    rows: (prompt ids, completion ids). Only the positions that predict a completion go through the vocabulary.
    """
    import torch

    losses: list[float] = []
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]) + len(rows[i][1]), i))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            losses += batch_losses(model, [rows[i] for i in order[start:start + batch_size]], pad_id)
    by_row = dict(zip(order, losses, strict=True))
    return [by_row[i] for i in range(len(rows))]


def batch_losses(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> list[float]:
    """`completion_losses` of one batch, padded on the right."""
    import torch

    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    scored = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor([*prompt, *completion])
        mask[i, :end] = 1
        scored[i, len(prompt):end] = True
    ids, scored = ids.to(model.device), scored.to(model.device)
    decoder = model.get_decoder()
    states = decoder(input_ids=ids, attention_mask=mask.to(model.device), use_cache=False).last_hidden_state
    predicts = scored[:, 1:]
    logits = model.get_output_embeddings()(states[:, :-1][predicts]).float()
    nll = torch.nn.functional.cross_entropy(logits, ids[:, 1:][predicts], reduction="none")
    row_of = predicts.nonzero()[:, 0]
    sums = torch.zeros(len(rows), device=nll.device).index_add_(0, row_of, nll)
    return [float(x) for x in (sums / scored.sum(dim=1)).cpu()]
