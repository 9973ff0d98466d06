"""Tables of a result, for spreadsheets and other programs: `test.csv` and `decisions.csv`."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nslora.tools.errors import DamagedError
from nslora.tools.files import write_text
from nslora.tools.rewards.score import Graded

# What a row of decisions.csv says of a round; `numbers.` and `editor.` are groups of the record.
DECISION_COLUMNS = (
    *("round", "action", "kept", "verdict", "reason", "reward_before", "reward_after", "potential_before"),
    *("potential_after", "numbers.gain", "numbers.p_value", "numbers.wins", "numbers.losses", "demand.p_content"),
    *("demand.failures", "candidate.adapter", "candidate.prompt", "trained_tokens", "generated_tokens", "flop"),
    *("editor.calls", "editor.cost", "wall_s", "error", "note"),
)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file atomically; a missing value is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(row.get(name)) for name in columns} for row in rows)
    write_text(path, text.getvalue())


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows that `write_table` wrote. Raises DamagedError if the file is missing or damaged."""
    try:
        with path.open(encoding="utf-8", errors="surrogatepass", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise DamagedError(f"{path} cannot be read ({error}).") from error


def test_rows(
    base: Sequence[Graded], result: Sequence[Graded], *, named: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of test.csv: what was asked, and what base and result replied, with each check.

    `history` holds the turns before the question as JSON, in tasks of dialogues. named: what the columns of `base` are
    called.
    """
    checks = list(result[0].score.checks) if result else []
    columns = ["id", "question", "reference", f"{named}_reply", "result_reply", f"{named}_reward", "result_reward"]
    columns += [f"{which}_{name}" for name in checks for which in (named, "result")]
    rows = []
    for old, new in zip(base, result, strict=True):
        row: dict[str, Any] = {
            "id": new.example.id,
            "question": new.example.question,
            "reference": new.example.reference,
        }
        if new.example.history:
            row["history"] = json.dumps(new.example.history, ensure_ascii=False)
        for which, each in ((named, old), ("result", new)):
            row |= {f"{which}_reply": each.thinking + each.reply, f"{which}_reward": each.score.value}
            row |= {f"{which}_{name}": value for name, value in each.score.checks.items()}
        rows.append(row)
    if any("history" in row for row in rows):
        columns.insert(1, "history")
    return columns, rows


def decision_rows(rounds: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of decisions.csv from the records of the rounds."""
    return [{name: _in(record, name) for name in DECISION_COLUMNS} for record in rounds]


def _in(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column; "." leads into a group."""
    found: Any = record
    for step in name.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _cell(value: Any) -> Any:
    return "" if value is None else int(value) if isinstance(value, bool) else value
