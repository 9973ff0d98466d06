"""The accepted texts in a column of a row, whose value may be a text, a number, or lists and mappings of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keys of the answers in SQuAD, TriviaQA and their kin. Other keys hold no answer: "type", "answer_start".
ANSWER_KEYS = (
    "value",
    "text",
    "texts",
    "answer",
    "answers",
    "aliases",
    "alias",
    "normalized_value",
    "normalized_aliases",
)
_MISSING = ("NAType", "NaTType")  # of pandas
_BARE_REPR: Any = object.__repr__


def texts_of(value: Any) -> list[str]:
    """List the texts in a value, each once. Empty texts and None count for nothing.

    Raises:
        ValueError: If the value holds NaN, bytes, a mapping without a known key, or an object that is no text. The
            message says what came.
    """
    return list(dict.fromkeys(text for text in _found(value) if text.strip()))


def _found(value: Any) -> list[str]:
    if hasattr(value, "tolist"):  # an array or a number of NumPy
        value = value.tolist()
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [text for each in value for text in _found(each)]
    if isinstance(value, set | frozenset):
        return sorted(text for each in value for text in _found(each))
    if isinstance(value, Mapping):
        known = [key for key in ANSWER_KEYS if key in value]
        if not known:
            raise ValueError(
                f"a mapping with the keys {', '.join(map(repr, value))}, where the text is looked for under "
                f"{', '.join(ANSWER_KEYS)}"
            )
        return [text for key in known for text in _found(value[key])]
    if type(value).__name__ in _MISSING or value != value:  # only NaN differs from itself
        raise ValueError("NaN, a missing value")
    if isinstance(value, bytes | bytearray) or type(value).__repr__ is _BARE_REPR:
        raise ValueError(f"an object of the type {type(value).__name__}")
    return [str(value)]
