"""Batched greedy generation with the shared prefix computed once.

All questions of an evaluation share the system turn and the demonstrations. Their keys and values are computed in one
forward pass and copied into each batch; what is left per question is its own tail.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from nslora.tools.policy import OnProgress

# Below this, copying the cache costs more than the prefix; measured with SmolLM2-135M on two cores.
SHORTEST_SHARED_PREFIX_TOKENS = 8
# What two orders of the same arithmetic may differ by, relative to the largest value, by dtype.
ROUNDING, COARSE_ROUNDING = {"torch.float32": 1e-4}, 5e-2
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
# A model's own generation config may ask for sampling (which greedy decoding ignores, loudly, unless unset), for no
# cache or one of another kind, for a dict, or for stops that need a tokenizer.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "use_cache": True,
    "cache_implementation": None,
    "return_dict_in_generate": False,
    "stop_strings": None,
}
PROBED_STEPS = 2  # the second is the first that sees what the first left in the cache


def rounding(model: Any) -> float:
    """The largest relative difference that this model's dtype explains."""
    return ROUNDING.get(str(model.dtype), COARSE_ROUNDING)


def beyond_window(model: Any, longest: int) -> bool:
    """Whether a row of so many tokens outgrows a sliding window (or a chunk) of the model's attention, or the length
    at which it changes its positions.

    What rearranges the tokens of a batch, or its blocks, is exact only within it.
    """
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in WINDOWS]
    return changes_positions(model, longest) or any(window and longest > window for window in windows)


def changes_positions(model: Any, longest: int) -> bool:
    """Whether rotary frequencies depend on whether a batch has a row of so many tokens (LongRoPE, of Phi-3)."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return bool(rope.get("rope_type") == "longrope" and limit and longest > limit)


def shared_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens with which all rows begin; every row keeps at least one token of its own."""
    smallest, largest = min(map(tuple, rows)), max(map(tuple, rows))
    limit = min(len(row) for row in rows) - 1
    shared = 0
    # The lexicographically smallest and largest row differ first where any two rows do.
    while shared < limit and smallest[shared] == largest[shared]:
        shared += 1
    return shared


def shareable_prefix(model: Any, rows: Sequence[Sequence[int]], longest: int) -> int:
    """Tokens of a prefix that may be computed once for all rows; 0 where there is none, or it would not be exact.

    longest: tokens of the longest row with its reply. Padding stands between the prefix and a row's tail, and a sliding
    window would count it: a model that has one is given whole rows once they outgrow it.
    """
    shared = shared_prefix_length(rows) if len(rows) > 1 else 0
    return shared if shared >= SHORTEST_SHARED_PREFIX_TOKENS and not beyond_window(model, longest) else 0


def replies_alike(model: Any, rows: Sequence[Sequence[int]], shared: int, pad_id: int) -> bool:
    """Whether the shortest and the longest row get the logits of their first new tokens in one batch as alone.

    shared: tokens of a prefix that is computed once, 0 for none. An architecture whose cache cannot be copied, that is
    no pure attention, or that does not leave padding out is found out here. Asked of these rows, of no longer ones.
    """
    import torch

    pair = [min(rows, key=len), max(rows, key=len)]
    try:
        with torch.inference_mode():
            prefix = prefix_cache(model, pair[0][:shared]) if shared else None
            together = first_logits(model, pair, shared, prefix, pad_id)
            alone = torch.cat([first_logits(model, [row], 0, None, pad_id) for row in pair])
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    differences = (together - alone).abs().amax(dim=2)
    # Where rounding alone tipped the first token, the second follows another one and says nothing.
    tipped = together[:, 0].argmax(dim=1) != alone[:, 0].argmax(dim=1)
    differences[:, 1:][tipped] = 0.0
    return bool(differences.max() <= rounding(model) * alone.abs().max())


def first_logits(model: Any, rows: Sequence[Sequence[int]], shared: int, prefix: Any, pad_id: int) -> Any:
    """Logits of the first tokens of each reply, (B, PROBED_STEPS, V) float32."""
    import torch

    ids, mask = padded(rows, shared, pad_id, model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=copied(prefix, len(rows)),
        max_new_tokens=PROBED_STEPS,
        min_new_tokens=PROBED_STEPS,
        pad_token_id=pad_id,
        **{**GREEDY, "return_dict_in_generate": True},
        output_logits=True,
    )
    return torch.stack(output.logits, dim=1).float()


def generate_ids(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    on_progress: OnProgress,
    shared: int,
    pads: bool = True,
) -> list[list[int]]:
    """Greedy continuations of `rows` (token ids), in their order, each cut after its first stop token.

    model: a causal language model in eval mode, on one device. Rows are batched by length, so that little is padded.
    shared: tokens that all rows begin with and that are computed once, 0 for none. pads: whether rows of different
    lengths may go together.
    """
    import torch

    replies: list[list[int]] = [[] for _ in rows]
    done = 0
    with torch.inference_mode():
        prefix = prefix_cache(model, rows[0][:shared]) if shared else None
        for batch in batches([len(row) for row in rows], batch_size, pads):
            new = generate_batch(model, [rows[i] for i in batch], shared, prefix, max_new_tokens, stop_ids, pad_id)
            for i, ids in zip(batch, new, strict=True):
                replies[i] = ids
            done += len(batch)
            on_progress(done, len(rows))
    return replies


def batches(lengths: Sequence[int], size: int, pads: bool) -> Iterator[list[int]]:
    """Places of rows that go together, at most `size` of them, the shortest first; of one length unless it `pads`."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    groups = [order] if pads else [list(group) for _, group in itertools.groupby(order, lambda i: lengths[i])]
    for group in groups:
        for start in range(0, len(group), size):
            yield group[start : start + size]


def prefix_cache(model: Any, prefix: Sequence[int]) -> Any:
    """Keys and values of `prefix` (one row), as transformers' DynamicCache."""
    import torch
    from transformers import DynamicCache

    ids = torch.tensor([list(prefix)], device=model.device)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def generate_batch(
    model: Any,
    rows: Sequence[Sequence[int]],
    shared: int,
    prefix: Any,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """One batch. Rows are padded between the shared prefix and their tail, so that all replies start at one column."""
    ids, mask = padded(rows, shared, pad_id, model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=copied(prefix, len(rows)),
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        **GREEDY,
    )
    return [cut_after_stop(row, stop_ids) for row in output[:, ids.shape[1] :].tolist()]


def padded(rows: Sequence[Sequence[int]], shared: int, pad_id: int, device: Any) -> tuple[Any, Any]:
    """Token ids and mask, (B, longest) int64 each; the padding stands between the shared prefix and each row's tail."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        tail = len(row) - shared
        ids[i, :shared], ids[i, longest - tail :] = torch.tensor(row[:shared]), torch.tensor(row[shared:])
        mask[i, :shared], mask[i, longest - tail :] = 1, 1
    return ids.to(device), mask.to(device)


def copied(prefix: Any, count: int) -> Any:
    """The prefix's cache for a batch of `count` rows, of its own; None for none."""
    if prefix is None:
        return None
    cache = copy.deepcopy(prefix)
    cache.batch_repeat_interleave(count)
    return cache


def cut_after_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """`ids` up to and with the first stop token; what follows in a batch is padding."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return list(ids[: position + 1])
    return list(ids)
