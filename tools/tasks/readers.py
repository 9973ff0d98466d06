"""Read the rows of a task: JSON lines, JSON, CSV, Parquet, Hugging Face datasets and rows from Python."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from nslora.tools.errors import TaskError
from nslora.tools.schema import Turns

_LONGEST_FIELD = 2**31 - 1  # characters in one field of a CSV file
_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_Placed = Iterator[tuple[str, Any]]  # (place, value) of each row


@dataclass(frozen=True)
class SourceRow:
    """One row as read.

    Attributes:
        number: Position in its source, from 1.
        place: Where the row is, for messages: `train.jsonl:3`.
        columns: Column name -> value.
        labels: Column name -> label names, for columns that hold numbers of labels (ClassLabel of `datasets`).
        history: Turns before the question, of a row that holds a dialogue.
        merged: All right answers of the rows that were made this one; () if it is one row.
    """

    number: int
    place: str
    columns: Mapping[str, Any]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    history: Turns = ()
    merged: tuple[str, ...] = ()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error of reading `path` into a TaskError that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: the file is not UTF-8 at byte {error.start}; save it as UTF-8.") from error
    except gzip.BadGzipFile as error:
        raise TaskError(f"{path}: invalid gzip ({error}); compress the file again, or unpack it.") from error
    except EOFError as error:
        raise TaskError(f"{path}: the compressed file ends too early; compress it again.") from error
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be read ({error.strerror or error}); check the name and the permissions."
        ) from error


def read_rows(path: Path) -> list[SourceRow]:
    """Read all rows of a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file; text may be compressed (.jsonl.gz).

    Raises:
        TaskError: If the file is missing, unreadable or malformed. The message names file and line.
    """
    kind = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    reader = None if kind == ".parquet" != path.suffix.lower() else _READERS.get(kind)
    if reader is None:
        raise TaskError(
            f"{path}: the format {path.suffix!r} is unknown (known: {', '.join(_READERS)}, and text as .gz); "
            "convert the file."
        )
    with readable(path):
        if not path.is_file():
            raise TaskError(f"{path}: there is no such file; give the path under `data` relative to task.yaml.")
        return _numbered(reader(path))


def read_dataset(path: str, name: str | None, split: str, revision: str | None) -> list[SourceRow]:
    """Read one split of a Hugging Face dataset with `datasets.load_dataset`.

    Raises:
        TaskError: If `load_dataset` fails. The message lists the configs or splits that there are, or holds its error.
    """
    from datasets import load_dataset

    label = f"dataset {path}{f' ({name})' if name else ''}, split {split}"
    try:
        found = load_dataset(path, name, split=split, revision=revision)
        rows = list(found)
    except Exception as error:
        if isinstance(error, ValueError) and (advice := _other_names(path, name, split, revision)):
            raise TaskError(f"{label}: {advice}.") from error
        raise TaskError(
            f"{label}: cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]}); "
            "check dataset.path, dataset.name and dataset.splits."
        ) from error
    return _numbered(((f"{label}, row {number}", row) for number, row in enumerate(rows, 1)), _label_names(found))


def _other_names(path: str, name: str | None, split: str, revision: str | None) -> str | None:
    """Say which configs or splits a dataset has, if it lacks the one that was named."""
    from datasets import get_dataset_config_names, get_dataset_split_names

    try:
        configs = get_dataset_config_names(path, revision=revision)
        if name not in configs and (name is not None or len(configs) > 1):
            there = f"the config {name!r} is unknown" if name else "it has several configs"
            return f"{there} ({', '.join(configs)}): write one of them under dataset.name"
        splits = get_dataset_split_names(path, name or configs[0], revision=revision)
    except Exception:  # then `load_dataset` failed for another reason, and says it
        return None
    if split.split("[")[0] in splits:
        return None
    return f"the split is unknown ({', '.join(map(str, splits))}): name those that there are under dataset.splits"


def _label_names(dataset: Any) -> dict[str, Sequence[str]]:
    """Label names of the ClassLabel columns of a dataset, also of lists of labels."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return {}
    found: dict[str, Sequence[str]] = {}
    for name, feature in features.items():
        inner: Any = getattr(feature, "feature", feature)
        if type(inner).__name__ == "ClassLabel":
            found[name] = list(inner.names)
    return found


def from_python(rows: Iterable[Any], split: str) -> list[SourceRow]:
    """Take rows from Python: mappings of column name -> value, a pandas DataFrame, or a dataset of `datasets`.

    Raises:
        TaskError: If `rows` is not iterable, or a row is not a mapping.
    """
    if type(rows).__name__ == "DataFrame" and hasattr(rows, "to_dict"):
        frame: Any = rows
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")  # pandas writes NaN for no value
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise TaskError(f"{split}: got {type(rows).__name__}; give a list of rows, each a mapping of columns.")
    return _numbered(((f"{split} row {number}", row) for number, row in enumerate(rows, 1)), _label_names(rows))


def _numbered(rows: Iterable[tuple[str, Any]], labels: Mapping[str, Sequence[str]] | None = None) -> list[SourceRow]:
    """Number rows from 1; raise TaskError if one is not a mapping."""
    found = []
    for number, (place, value) in enumerate(rows, 1):
        if not isinstance(value, Mapping):
            raise TaskError(f"{place}: got {type(value).__name__}, but a row is an object with one value per column.")
        found.append(SourceRow(number, place, dict(value), labels or {}))
    return found


def _text_of(path: Path) -> str:
    """Read a text file, plain or compressed, whatever its line ends are."""
    with _opened(path) as file:
        return file.read()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; raise ValueError if a key repeats, because `json` would silently keep the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _jsonl(path: Path) -> _Placed:
    # Split at "\n" alone: JSON strings may hold U+2028, where splitlines() would cut.
    for line, text in enumerate(_text_of(path).split("\n"), 1):
        if text.strip():
            try:
                yield f"{path}:{line}", json.loads(text, object_pairs_hook=_unique_keys)
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{path}:{line}: invalid JSON ({error}); write one JSON object per line.") from error


def _json(path: Path) -> _Placed:
    text = _text_of(path)
    try:
        values = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data" and "\n" in text[: getattr(error, "pos", 0)]:
            yield from _jsonl(path)  # many data sets name JSON lines so
            return
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise TaskError(f"{path}{line}: invalid JSON ({error}).") from error
    if isinstance(values, dict):  # {"version": "1", "data": [{...}, ...]}
        lists = [each for each in values.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
        values = lists[0] if len(lists) == 1 else values
    if not isinstance(values, list):
        raise TaskError(
            f"{path}: got {type(values).__name__}; write a list of JSON objects, or an object with one such list."
        )
    yield from _in_order(path, values)


def _csv(path: Path) -> _Placed:
    with _opened(path, newline="") as file:
        header = re.sub('"[^"]*"', "", file.readline())
        file.seek(0)
        # A header without commas: Excel writes semicolons where the comma is the decimal mark.
        yield from _delimited(path, file, next((mark for mark in _MARKS if mark in header), ","))


def _tsv(path: Path) -> _Placed:
    with _opened(path, newline="") as file:
        yield from _delimited(path, file, "\t")


def _opened(path: Path, newline: str | None = None) -> TextIO:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    file: TextIO = opener(path, "rt", encoding="utf-8-sig", newline=newline)
    return file


def _delimited(path: Path, file: TextIO, delimiter: str) -> _Placed:
    csv.field_size_limit(_LONGEST_FIELD)  # applies to the whole module; the default is 128 KiB
    spaced = re.search(rf"\w\"?{re.escape(delimiter)} +", file.readline()) is not None  # "question, reference"
    file.seek(0)
    reader = csv.DictReader(file, strict=True, delimiter=delimiter, skipinitialspace=spaced)
    try:
        names = reader.fieldnames or ()
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise TaskError(f"{path}:1: the column {twice[0]!r} comes twice; rename one.")
        for row in reader:
            if None in row or None in row.values():
                came = sum(value is not None for value in row.values()) + len(row.get(None) or ()) - (None in row)
                raise TaskError(
                    f"{path}:{reader.line_num}: {came} values for {len(names)} columns; "
                    f"quote values with {_MARKS[delimiter]}."
                )
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise TaskError(f"{path}:{reader.line_num}: invalid CSV ({error}).") from error


def _parquet(path: Path) -> _Placed:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        values = read_table(path).to_pylist()
    except (ArrowException, OverflowError, ValueError) as error:
        raise TaskError(f"{path}: invalid Parquet ({' '.join(str(error).split())[:200]}).") from error
    yield from _in_order(path, values)


def _in_order(path: Path, values: Iterable[Any]) -> _Placed:
    return ((f"{path}, row {number}", value) for number, value in enumerate(values, 1))


_READERS: dict[str, Callable[[Path], _Placed]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
