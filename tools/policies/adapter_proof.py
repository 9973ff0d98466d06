"""Proof that an engine applies an adapter: log-probabilities of some rows, as the trainer found them.

A server that answers from its base without a word is the fault that no reply shows. So whoever trains for a server
leaves `proof.json` in the adapter's folder, outside of the content that the hash names.
"""

from collections.abc import Callable, Sequence
from typing import Any

from nslora.tools.errors import ModelError
from nslora.tools.files import read_json, write_json
from nslora.tools.training.adapters import WEIGHTS, AdapterStore

PROOF = "proof.json"
TRIED, KEPT = 16, 4  # training rows that are scored, and those of them that are kept, where the adapter shows most
EXACT_NATS, ROUNDED_NATS = 1e-3, 0.03  # differences per token between engines in float32 (measured: 1.3e-5) and below
OTHER_BASE_NATS = 0.1  # between losses of two bases; above what rounding and batching change in 16 bits
NOISE = 4  # an adapter's rows may differ by so many times what the base's rows differ

Row = tuple[Sequence[int], Sequence[int]]  # (prompt ids, completion ids)
Score = Callable[[Sequence[Row], str | None], list[float]]  # rows, adapter -> nats per token of the completions


def write_proof(store: AdapterStore, adapter: str, rows: Sequence[Row], score: Score, *, exact: bool) -> None:
    """Score rows with and without an adapter, and keep those that tell the two apart best.

    Args:
        store: The adapter store.
        adapter: Hash of the adapter.
        rows: Training rows.
        score: Of the trainer's model.
        exact: Whether the model computes in float32.
    """
    unlike = list(dict.fromkeys((tuple(prompt), tuple(completion)) for prompt, completion in rows))[:TRIED]
    scored = list(zip(unlike, score(unlike, None), score(unlike, adapter), strict=True))
    scored.sort(key=lambda each: -abs(each[1] - each[2]))
    names = ("rows", "base", "adapter")
    kept = {name: [each[i] for each in scored[:KEPT]] for i, name in enumerate(names)}
    write_json(store.folder / adapter / PROOF, {**kept, "exact": exact})


def refuse_unproven(store: AdapterStore, adapter: str, score: Score, fallback: Sequence[Row], who: str) -> None:
    """Check that an engine applies an adapter.

    Args:
        store: The adapter store.
        adapter: Hash of the adapter, which the engine has loaded.
        score: Of the engine.
        fallback: Rows for an adapter that was not trained here: there, the adapter has to change something.
        who: Name of the engine, for the message.

    Raises:
        ModelError: If the base is another one, or the adapter is not applied, or applied in another way.
    """
    file = store.folder / adapter / PROOF
    if not file.is_file():
        if score(fallback, None) == score(fallback, adapter) and _changes_something(store, adapter):
            raise ModelError(f"{who} answers under the adapter {adapter} as without it: look into its log.")
        return
    known: dict[str, Any] = read_json(file)
    rows = [(prompt, completion) for prompt, completion in known["rows"]]
    base, adapted = score(rows, None), score(rows, adapter)
    floor = EXACT_NATS if known["exact"] else ROUNDED_NATS
    noise = _largest(base, known["base"])
    if noise > 10 * floor:
        raise ModelError(
            f"{who} has another base than the trainer: losses without an adapter differ by {noise:.3g} nats per token. "
            "Start it with the run's model."
        )
    bound = max(floor, NOISE * noise)
    if (found := _largest(adapted, known["adapter"])) > bound:
        how = "its losses are those of the base" if _largest(adapted, base) <= bound else "its losses are other ones"
        raise ModelError(
            f"{who} does not apply the adapter {adapter} as it was trained: {how} ({found:.3g} nats per token off, "
            f"{bound:.1g} allowed). Look into its log; nothing was asked under this adapter."
        )


def _largest(found: Sequence[float], wanted: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True))


def _changes_something(store: AdapterStore, adapter: str) -> bool:
    """Whether one of the adapter's B matrices is not zero."""
    from safetensors.torch import load_file

    weights = load_file(store.folder / adapter / WEIGHTS)
    return any(bool(value.any()) for name, value in weights.items() if "lora_B" in name)
