"""Batched greedy generation, with the shared prefix computed once.

All questions of an evaluation share the system turn and the demonstrations. One forward pass computes their keys and
values, each batch gets a copy, and only the rest of each question is computed per row.
"""

import copy
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nslora.tools.inference.decoder import beyond_window
from nslora.tools.inference.memory import halving_batches
from nslora.tools.policy import OnProgress, Sampling

# Below this, copying the cache costs more than computing the prefix; measured with SmolLM2-135M on two cores.
SHORTEST_SHARED_PREFIX_TOKENS = 8
# Largest difference between two orders of the same arithmetic, relative to the largest value, by dtype.
ROUNDING, COARSE_ROUNDING = {"torch.float32": 1e-4}, 5e-2
# Overrides of a model's generation config, which may ask for sampling (transformers warns of unused sampling settings
# unless they are unset), no cache, another cache, a dict, or stops that need a tokenizer.
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
PROBED_STEPS = 2  # the second step is the first that reads what the first wrote into the cache


def rounding(model: Any) -> float:
    """Return the largest relative difference that rounding explains in this model's dtype."""
    return ROUNDING.get(str(model.dtype), COARSE_ROUNDING)


def shared_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all rows begin with; every row keeps at least one token of its own."""
    common = os.path.commonprefix([list(row) for row in rows])  # noqa: RUF071 (it compares items of any sequence)
    return min(len(common), min(len(row) for row in rows) - 1)


def shareable_prefix(model: Any, rows: Sequence[Sequence[int]], longest: int) -> int:
    """Count the tokens of a prefix that can be computed once for all rows; 0 if that is inexact or does not pay.

    Args:
        model: A causal language model.
        rows: Token ids of the prompts.
        longest: Tokens of the longest row with its reply. Padding stands between the prefix and the rest of a row, and
            a sliding window would count it, so rows beyond the window are computed whole.
    """
    shared = shared_prefix_length(rows) if len(rows) > 1 else 0
    return shared if shared >= SHORTEST_SHARED_PREFIX_TOKENS and not beyond_window(model, longest) else 0


def replies_alike(model: Any, rows: Sequence[Sequence[int]], shared: int, pad_id: int) -> bool:
    """Return whether the shortest and the longest row get the same first logits in one batch as alone.

    This finds architectures whose cache cannot be copied, that mix tokens other than by attention, or that do not mask
    padding. The answer holds for rows up to this length.

    Args:
        model: A causal language model.
        rows: Token ids of the prompts.
        shared: Tokens of the prefix that is computed once, 0 for none.
        pad_id: Token id of the padding.
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
    # If rounding alone changed the first token, the second follows another token and cannot be compared.
    tipped = together[:, 0].argmax(dim=1) != alone[:, 0].argmax(dim=1)
    differences[:, 1:][tipped] = 0.0
    return bool(differences.max() <= rounding(model) * alone.abs().max())


def first_logits(model: Any, rows: Sequence[Sequence[int]], shared: int, prefix: Any, pad_id: int) -> Any:
    """Return the logits of each reply's first tokens, (B, PROBED_STEPS, V) float32."""
    import torch

    length = {"max_new_tokens": PROBED_STEPS, "min_new_tokens": PROBED_STEPS}
    dict_of_logits = {"return_dict_in_generate": True, "output_logits": True}
    output = _generate(model, rows, shared, prefix, pad_id, {**length, **dict_of_logits})
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
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Generate the continuations of `rows`, in their order.

    Rows are batched by length, to pad little. A batch that runs out of memory is halved.

    Args:
        model: A causal language model in eval mode, on one device.
        rows: Token ids of the prompts.
        max_new_tokens: Length limit of a reply.
        stop_ids: Tokens that end a reply; the first one is kept.
        pad_id: Token id of the padding.
        batch_size: Rows of the first batch.
        on_progress: Called with (rows done, all rows) after each batch.
        shared: Tokens that all rows begin with and that are computed once, 0 for none.
        pads: Whether rows of different lengths may share a batch.
        sampling: Draws them; None for greedy ones.

    Raises:
        ModelError: If a batch of one row runs out of memory.
    """
    import torch
    from transformers import LogitsProcessorList

    replies: dict[int, list[int]] = {}
    wanted = {"max_new_tokens": max_new_tokens, "eos_token_id": list(stop_ids)}

    def generate_rest(size: int) -> None:
        rest = {i: len(row) for i, row in enumerate(rows) if i not in replies}
        for batch in _batches(rest, size, pads):
            chosen = [rows[i] for i in batch]
            drawn = {} if sampling is None else {"logits_processor": LogitsProcessorList([_Gumbel(chosen, sampling)])}
            output = _generate(model, chosen, shared, prefix, pad_id, wanted | drawn)
            start = max(len(rows[i]) for i in batch)
            replies.update(
                (i, _until_stop(ids, stop_ids)) for i, ids in zip(batch, output[:, start:].tolist(), strict=True)
            )
            on_progress(len(replies), len(rows))

    with torch.inference_mode():
        prefix = prefix_cache(model, rows[0][:shared]) if shared else None
        halving_batches(generate_rest, batch_size)
    return [replies[i] for i in range(len(rows))]


class _Gumbel:
    """Makes the greedy choice a draw at a temperature (Gumbel-max trick, Yellott 1977).

    Each row has its own random numbers, by its tokens and the sample's number, so that a draw does not depend on what
    shares the row's batch.
    """

    def __init__(self, rows: Sequence[Sequence[int]], sampling: Sampling) -> None:
        import torch

        self.temperature = sampling.temperature
        self.generators = []
        for row in rows:
            seed = hashlib.sha256(f"{sampling.number}/{list(row)}".encode()).digest()[:8]
            self.generators.append(torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        uniform = torch.stack([torch.rand(scores.shape[1], generator=each) for each in self.generators])
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self.temperature + gumbel.to(scores.device)


def _batches(lengths: Mapping[int, int], size: int, pads: bool) -> Iterator[list[int]]:
    """Split rows into batches, the shortest rows first; without padding, all rows of a batch have one length."""
    order = sorted(lengths, key=lambda i: (lengths[i], i))
    groups = [order] if pads else [list(group) for _, group in itertools.groupby(order, lambda i: lengths[i])]
    for group in groups:
        for start in range(0, len(group), size):
            yield group[start : start + size]


def prefix_cache(model: Any, prefix: Sequence[int]) -> Any:
    """Compute the keys and values of `prefix` (one row), as transformers' DynamicCache."""
    import torch
    from transformers import DynamicCache

    ids = torch.tensor([list(prefix)], device=model.device)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def copied(prefix: Any, count: int) -> Any:
    """Copy the prefix's cache for a batch of `count` rows; None stays None."""
    if prefix is None:
        return None
    cache = copy.deepcopy(prefix)
    cache.batch_repeat_interleave(count)
    return cache


def _generate(
    model: Any, rows: Sequence[Sequence[int]], shared: int, prefix: Any, pad_id: int, wanted: Mapping[str, Any]
) -> Any:
    """Call the model's greedy `generate` for one batch.

    The padding stands between the shared prefix and the rest of a row, so that all replies start at one column.
    """
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        tail = longest - len(row) + shared
        ids[i, :shared], ids[i, tail:] = torch.tensor(row[:shared]), torch.tensor(row[shared:])
        mask[i, :shared], mask[i, tail:] = 1, 1
    return model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        past_key_values=copied(prefix, len(rows)),
        pad_token_id=pad_id,
        **{**GREEDY, **wanted},
    )


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Cut `ids` after the first stop token; what follows in a batch is padding."""
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[: end + 1])
