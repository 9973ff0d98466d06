"""Finished runs of one task side by side, question by question on the test split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.graph.runs.view import RunView, look
from nslora.tools.errors import DamagedError, RunError
from nslora.tools.evaluation.paired_tests import bootstrap_interval
from nslora.tools.files import quoted, read_jsonl
from nslora.tools.workspace.record import read_run_file

Estimate = tuple[float, float, float]  # mean, and the ends of its 95 % interval


@dataclass(frozen=True)
class ComparedRun:
    """One run's result on the test split, and what it cost."""

    name: str
    all_checks: float
    reward: float
    actions: str
    strategy: str
    seed: int
    wall_s: float
    trained_tokens: int
    editor_calls: float


@dataclass(frozen=True)
class Gain:
    """Of a run over the first, paired by question."""

    all_checks: Estimate
    reward: Estimate


@dataclass(frozen=True)
class Comparison:
    """gains: one for each run after the first. one_task: whether all had the same data, prompt and reward."""

    questions: int
    one_task: bool
    runs: tuple[ComparedRun, ...]
    gains: tuple[Gain, ...]


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Compare finished runs. Raises RunError if a run has no result, or the runs answered different test questions."""
    if not folders:
        raise RunError("There is nothing to compare: name at least one run.")
    views = [look(folder) for folder in folders]
    tests = [_question_scores(view) for view in views]
    first = [_question_key(row) for row in tests[0]]
    for view, rows in zip(views, tests, strict=True):
        if [_question_key(row) for row in rows] != first:
            raise RunError(
                f"{view.folder} and {views[0].folder} were tested on other questions: compare runs of one task."
            )
    gains = tuple(Gain(paired(tests[0], rows, "passed"), paired(tests[0], rows, "reward")) for rows in tests[1:])
    hashes = {str(read_run_file(view.folder)["task"]["hash"]) for view in views}
    runs = tuple(compared(view, rows) for view, rows in zip(views, tests, strict=True))
    return Comparison(len(first), len(hashes) == 1, runs, gains)


def _question_scores(view: RunView) -> list[dict[str, Any]]:
    """The result's score on each test question."""
    path = view.folder / "result" / "test.jsonl"
    if not path.is_file():
        raise RunError(f"{view.folder} has no test scores: let it finish first (nslora resume {quoted(view.folder)}).")
    try:
        rows = [row for row in read_jsonl(path) if row["candidate"] == "result"]
        whole = all({"id", "passed", "reward"} <= row.keys() for row in rows)
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: a line of it is no score.") from error
    if not rows or not whole:
        raise DamagedError(f"{path} is damaged: it holds no scores of the result.")
    return rows


def _question_key(row: dict[str, Any]) -> tuple[str, str]:
    """The question that a score belongs to. Ids alone do not tell: a task without ids numbers its rows."""
    return str(row["id"]), str(row.get("question_sha256", ""))


def paired(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], key: str) -> Estimate:
    differences = [float(b[key]) - float(a[key]) for a, b in zip(old, new, strict=True)]
    return (sum(differences) / len(differences), *bootstrap_interval(differences))


def compared(view: RunView, rows: Sequence[dict[str, Any]]) -> ComparedRun:
    return ComparedRun(
        name=view.folder.name,
        all_checks=sum(float(row["passed"]) for row in rows) / len(rows),
        reward=sum(row["reward"] for row in rows) / len(rows),
        actions=", ".join(each.action for each in view.rounds),
        strategy=str(view.settings["strategy"]),
        seed=int(view.settings["seed"]),
        wall_s=view.wall_s,
        trained_tokens=sum(each.trained_tokens for each in view.rounds),
        editor_calls=sum(each.editor.get("calls", 0) for each in view.rounds),
    )
