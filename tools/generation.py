"""Batched greedy generation with the shared prefix computed once.

All questions of an evaluation share the system turn and the demonstrations. Their keys and values are computed in one
forward pass and copied into each batch; what is left per question is its own tail.
"""

import copy
from collections.abc import Sequence
from typing import Any

from nslora.tools.policy import Advance

# Below this, copying the cache costs more than the prefix; measured with SmolLM2-135M on two cores.
SHORTEST_SHARED_PREFIX_TOKENS = 8


def shared_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens with which all rows begin; every row keeps at least one token of its own."""
    smallest, largest = min(map(tuple, rows)), max(map(tuple, rows))
    limit = min(len(row) for row in rows) - 1
    shared = 0
    # The lexicographically smallest and largest row differ first where any two rows do.
    while shared < limit and smallest[shared] == largest[shared]:
        shared += 1
    return shared


def generate_ids(model: Any, rows: Sequence[Sequence[int]], *, max_new_tokens: int, stop_ids: Sequence[int],
                 pad_id: int, batch_size: int, advance: Advance) -> list[list[int]]:
    """Greedy continuations of `rows` (token ids), in their order, each cut after its first stop token.

    model: a causal language model in eval mode, on one device. Rows are batched by length, so that little is padded.
    """
    import torch

    shared = shared_prefix_length(rows) if len(rows) > 1 else 0
    if shared < SHORTEST_SHARED_PREFIX_TOKENS:
        shared = 0
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    replies: list[list[int]] = [[] for _ in rows]
    with torch.inference_mode():
        prefix = prefix_cache(model, rows[0][:shared]) if shared else None
        for start in range(0, len(order), batch_size):
            batch = order[start:start + batch_size]
            new = generate_batch(model, [rows[i] for i in batch], shared, prefix, max_new_tokens, stop_ids, pad_id)
            for i, ids in zip(batch, new, strict=True):
                replies[i] = ids
            advance(min(start + batch_size, len(order)), len(order))
    return replies


def prefix_cache(model: Any, prefix: Sequence[int]) -> Any:
    """Keys and values of `prefix` (one row), as transformers' DynamicCache."""
    import torch
    from transformers import DynamicCache

    ids = torch.tensor([list(prefix)], device=model.device)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def generate_batch(model: Any, rows: Sequence[Sequence[int]], shared: int, prefix: Any, max_new_tokens: int,
                   stop_ids: Sequence[int], pad_id: int) -> list[list[int]]:
    """One batch. Rows are padded between the shared prefix and their tail, so that all replies start at one column."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        tail = len(row) - shared
        ids[i, :shared], ids[i, longest - tail:] = torch.tensor(row[:shared]), torch.tensor(row[shared:])
        mask[i, :shared], mask[i, longest - tail:] = 1, 1
    cache = None
    if prefix is not None:
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(len(rows))
    output = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), past_key_values=cache,
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=list(stop_ids), pad_token_id=pad_id,
        # A model's own generation config may ask for sampling; greedy decoding ignores these, loudly, unless unset.
        temperature=None, top_p=None, top_k=None)
    return [cut_after_stop(row, stop_ids) for row in output[:, longest:].tolist()]


def cut_after_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """`ids` up to and with the first stop token; what follows in a batch is padding."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return list(ids[:position + 1])
    return list(ids)
