"""Rows with a list of choices: each gets a letter, and a reference that is the number of one becomes its letter."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from nslora.tools.answers import plain

COLUMNS = ("choices", "options", "endings")
Kind = Literal["letters", "numbers"]


def choices_in(columns: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Find the column of the choices and their texts; ARC keeps them under `text`, beside their labels."""
    for name in COLUMNS:
        value = plain(columns.get(name))
        texts = plain(value.get("text")) if isinstance(value, Mapping) else value
        if isinstance(texts, list | tuple) and 1 < len(texts) <= 26 and all(isinstance(each, str) for each in texts):
            return name, list(texts)
    return None


def kind_of(rows: Iterable[tuple[Mapping[str, Any], Any]]) -> Kind | None:
    """Say how references name the choices of their rows: by letters from A, by numbers from 0, or (None) otherwise.

    Args:
        rows: Columns and raw reference of each row.
    """
    kinds: set[Kind | None] = set()
    for columns, reference in rows:
        found, name = choices_in(columns), str(plain(reference)).strip()
        count = len(found[1]) if found and isinstance(plain(reference), str | int) else 0
        letters = string.ascii_uppercase[:count]
        kinds.add("letters" if len(name) == 1 and name in letters else "numbers" if name in _NUMBERS[:count] else None)
    return kinds.pop() if len(kinds) == 1 else None


def lettered(texts: Sequence[str]) -> str:
    """Write the choices with their letters, one a line."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, texts, strict=False))


def letter_of(number: Any) -> str:
    """The letter of a choice's number, from 0."""
    return string.ascii_uppercase[int(number)]


_NUMBERS = [str(number) for number in range(26)]
