"""Reading the rows of a task: JSON lines, JSON, CSV, Parquet and Hugging Face datasets, each row with its place."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.tools.errors import TaskError

LONGEST_FIELD = 2**31 - 1  # of a CSV file, in characters


@dataclass(frozen=True)
class SourceRow:
    """One row as it came: its number from 1 in its source, its place for messages (`train.jsonl:3`), its columns."""

    number: int
    place: str
    columns: Mapping[str, Any]


def read_rows(path: Path) -> list[SourceRow]:
    """All rows of a .jsonl, .json, .csv or .parquet file. Raises TaskError with file and line."""
    readers: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    if path.suffix.lower() not in readers:
        raise TaskError(f"{path}: {path.suffix!r} is no known format (known: {', '.join(readers)}); convert the file.")
    try:
        if not path.is_file():
            raise TaskError(f"{path}: there is no such file; name it under `data` relative to task.yaml.")
        return list(readers[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: no UTF-8 text at byte {error.start}; save the file as UTF-8.") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error}).") from error


def read_dataset(path: str, name: str | None, split: str, revision: str | None) -> list[SourceRow]:
    """One split of a Hugging Face dataset, by `datasets.load_dataset`. Raises TaskError with what it answered."""
    from datasets import load_dataset

    label = f"dataset {path}{f' ({name})' if name else ''}, split {split}"
    try:
        data = load_dataset(path, name, split=split, revision=revision)
        rows = [dict(row) for row in data]
    except Exception as error:
        raise TaskError(
            f"{label}: cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]}); "
            "check dataset.path, dataset.name and dataset.splits."
        ) from error
    return [SourceRow(number, f"{label}, row {number}", row) for number, row in enumerate(rows, 1)]


def from_python(rows: Iterable[Any], split: str) -> list[SourceRow]:
    """Rows that were handed over in Python: mappings of columns."""
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise TaskError(f"{split}: rows are wanted, each a mapping of columns, not {type(rows).__name__}.")
    rows = list(rows)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise TaskError(f"{split} row {number}: a mapping of columns is wanted, not {type(row).__name__}.")
    return [SourceRow(number, f"{split} row {number}", dict(row)) for number, row in enumerate(rows, 1)]


def split_off(
    rows: Sequence[SourceRow], shares: Mapping[str, float], seed: int, question_of: Callable[[SourceRow], str]
) -> dict[str, list[SourceRow]]:
    """Cut shares of the questions off for other splits; rows of one question stay together, in file order.

    shares: split name -> share in (0, 1) of the distinct questions; "train" in the result holds the rest.
    """
    questions = sorted({question_of(row) for row in rows})
    random.Random(seed).shuffle(questions)
    owner = dict.fromkeys(questions, "train")
    start = 0
    for split, share in shares.items():
        count = round(share * len(questions))
        owner.update(dict.fromkeys(questions[start : start + count], split))
        start += count
    return {split: [row for row in rows if owner[question_of(row)] == split] for split in ("train", *shares)}


def _row(path: Path, line: int, number: int, value: Any) -> SourceRow:
    if not isinstance(value, dict):
        raise TaskError(f"{path}:{line}: a JSON object is wanted, not {type(value).__name__}; write one object a row.")
    return SourceRow(number, f"{path}:{line}", value)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; json itself takes the last of two equal keys without a word. Raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _jsonl(path: Path) -> Iterator[SourceRow]:
    number = 0
    # Split at "\n" alone: JSON strings may hold U+2028, at which splitlines() would cut.
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if text.strip():
            number += 1
            try:
                value = json.loads(text, object_pairs_hook=_each_key_once)
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{path}:{line}: no valid JSON ({error}); write one JSON object a line.") from error
            yield _row(path, line, number, value)


def _json(path: Path) -> Iterator[SourceRow]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}:{error.lineno}: no valid JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise TaskError(f"{path}: no valid JSON ({error}).") from error
    if not isinstance(values, list):
        raise TaskError(f"{path}: a list of JSON objects is wanted, not {type(values).__name__}.")
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise TaskError(f"{path}: row {number} is {type(value).__name__}, but a JSON object is wanted.")
        yield SourceRow(number, f"{path}, row {number}", value)


def _csv(path: Path) -> Iterator[SourceRow]:
    csv.field_size_limit(LONGEST_FIELD)  # of the module, not of a reader; 128 KiB by itself
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise TaskError(f"{path}:1: the column {twice[0]!r} comes twice; rename one.")
            for number, row in enumerate(reader, 1):
                columns = len(reader.fieldnames or ())
                if None in row or None in row.values():
                    came = sum(value is not None for value in row.values()) + len(row.get(None) or ()) - (None in row)
                    raise TaskError(
                        f"{path}:{reader.line_num}: {came} values came for {columns} columns; quote values with commas."
                    )
                yield SourceRow(number, f"{path}:{reader.line_num}", row)
        except csv.Error as error:
            raise TaskError(f"{path}:{reader.line_num}: no valid CSV ({error}).") from error


def _parquet(path: Path) -> Iterator[SourceRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        values = read_table(path).to_pylist()
    except (ArrowException, OverflowError, ValueError) as error:
        raise TaskError(f"{path}: no valid Parquet ({' '.join(str(error).split())[:200]}).") from error
    for number, value in enumerate(values, 1):
        yield SourceRow(number, f"{path}, row {number}", value)
