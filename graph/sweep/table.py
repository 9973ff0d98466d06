"""A sweep's table: a line a cell as JSON and CSV, and for people a line for each kind of cell, over its seeds."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from nslora.tools.files import write_json, write_text

Row = Mapping[str, Any]
KIND = ("task", "options", "model", "editor", "variant", "strategy")
COLUMNS = (*KIND, "seeds", "base", "result", "gain", "changed", "updates", "TFLOP", "minutes")
JSON_FILE, CSV_FILE = "table.json", "table.csv"


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """Write one line a cell as JSON, and its numbers as CSV."""
    write_json(folder / JSON_FILE, list(rows))
    lines = [flat(row) for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    write_text(folder / CSV_FILE, text.getvalue())


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as columns `cost.tflop`, `gain.interval.0`; the rounds in one column, dropped ones in brackets."""
    found: dict[str, Any] = {}
    for name, each in value.items():
        if name == "rounds":
            found[name] = " ".join(one["action"] if one["kept"] else f"({one['action']})" for one in each)
        elif isinstance(each, Mapping):
            found |= flat(each, f"{prefix}{name}.")
        elif isinstance(each, list | tuple):
            found |= flat({str(i): part for i, part in enumerate(each)}, f"{prefix}{name}.")
        else:
            found[prefix + name] = each
    return found


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """`COLUMNS` of each kind of cell, means over its finished seeds: mean reward on the test split."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["status"] == "finished":
            words = {**row, "options": " ".join(f"{each}" for each in row["options"].values())}
            kinds.setdefault(tuple(str(words[name]) for name in KIND), []).append(row)
    return [[*kind, *_numbers(of_kind)] for kind, of_kind in kinds.items()]


def _numbers(rows: Sequence[Row]) -> list[str]:
    base, result = (fmean(row[which]["reward"] for row in rows) for which in ("base", "result"))
    changed = sum(row["changed"] for row in rows)
    return [
        str(len(rows)),
        f"{base:.3f}",
        f"{result:.3f}",
        f"{result - base:+.3f}",
        f"{changed} of {len(rows)}",
        f"{fmean(len(row['rounds']) for row in rows):.1f}",
        f"{fmean(row['cost']['tflop'] + row['cost']['test_tflop'] for row in rows):.3g}",
        f"{fmean(row['wall_s'] for row in rows) / 60:.1f}",
    ]


def text_table(rows: Sequence[Row]) -> str:
    """The summary in columns; one that is the same and empty in every line is left out."""
    lines = [list(COLUMNS), *summary(rows)]
    kept = [i for i in range(len(COLUMNS)) if any(line[i] for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in kept}
    return "\n".join("  ".join(line[i].ljust(widths[i]) for i in kept).rstrip() for line in lines)
