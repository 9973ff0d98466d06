"""Right answers of a row: one text, several texts, or the shapes in which public data sets keep them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Keys that hold right answers in SQuAD, TriviaQA and their like, and keys that may stand beside them.
_ANSWERS = ("text", "texts", "value", "values", "answer", "answers", "aliases")
_BESIDE = {
    *("answer_start", "start", "end", "type", "id", "matched_wiki_entity_name", "normalized_matched_wiki_entity_name"),
    *("normalized_aliases", "normalized_value", "normalized_text"),
}

_BARE_REPR: Any = object.__repr__  # of a class that says nothing about its values


def column_value(columns: Mapping[str, Any], path: str) -> Any:
    """Read a column, or a value inside it: `answers.text`. A list on the way gives the list of its values.

    Raises:
        KeyError: If there is neither a column of that name nor a value at that path.
    """
    if path in columns:
        return columns[path]
    head, dot, _ = path.rpartition(".")
    while dot:
        if head in columns:
            return _inside(columns[head], path[len(head) + 1 :].split("."))
        head, dot, _ = head.rpartition(".")
    raise KeyError(path)


def has_column(columns: Mapping[str, Any], path: str) -> bool:
    """Whether `column_value` finds a value."""
    try:
        column_value(columns, path)
    except KeyError:
        return False
    return True


def _inside(value: Any, keys: list[str]) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value[key]
        elif isinstance(value, list | tuple):
            value = [_inside(each, [key]) for each in value]
        else:
            raise KeyError(key)
    return value


def is_missing(value: Any) -> bool:
    """Whether a value is None, not a number, which pandas writes for a missing value, or infinite (1e400 in JSON)."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, float):
        return not math.isfinite(value)
    return bool(value != value)  # only NaN, of NumPy or Decimal too, differs from itself


def plain(value: Any) -> Any:
    """Convert a NumPy scalar or array to a value of Python; keep other values."""
    if hasattr(value, "dtype"):
        return value.tolist()
    return value


def as_csv_text(value: Any) -> str:
    """Write a single value as a CSV file would hold it: `true` for a JSON boolean, `7` for a number."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def accepted_texts(value: Any) -> list[str]:
    """List the right answers in a value, in order, each once.

    Args:
        value: A text, a number, a boolean, a list of such, or an object such as `{"value": .., "aliases": [..]}`.
            Lists may be nested. None and empty texts are left out.

    Raises:
        ValueError: If the value holds NaN, bytes, an object that is no text, or a mapping with keys beside its answers
            that may change their meaning. The message begins with what came.
    """
    return list(dict.fromkeys(_texts(value)))


def _texts(value: Any) -> list[str]:
    value = plain(value)
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    if isinstance(value, set | frozenset):
        return sorted(text for each in value for text in _texts(each))
    if isinstance(value, Mapping):
        held = [key for key in _ANSWERS if key in value]
        if not held or set(value) - set(_ANSWERS) - _BESIDE:
            raise ValueError(
                f"an object with the keys {', '.join(map(str, value)) or '(none)'}, and it is not known which of them "
                "are right answers: name one by its path, as in answers.text"
            )
        return [text for key in held for text in _texts(value[key])]
    if is_missing(value):
        raise ValueError("NaN, a missing value")
    if isinstance(value, bytes | bytearray) or type(value).__repr__ is _BARE_REPR:
        raise ValueError(f"an object of the type {type(value).__name__}")
    text = as_csv_text(value)
    return [text] if text.strip() else []
