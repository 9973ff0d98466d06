"""Finished runs side by side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.compare import compare
from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError
from nslora.tools.tasks.task import load_task


def test_runs_are_compared_question_by_question(finished: Run, begin: Callable[..., Run]) -> None:
    other = begin("other", max_rounds=0)
    other.adapt()
    comparison = compare([finished.folder, other.folder])
    assert comparison.questions == 6
    mean, low, high = comparison.gains[0].reward
    assert low <= mean <= high
    assert mean == pytest.approx(comparison.runs[1].reward - comparison.runs[0].reward)
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["compare", str(finished.folder), str(other.folder)])
    assert "gain in all checks over the first" in shown.output
    assert comparison.one_task
    assert "another yardstick" not in shown.output


def test_runs_under_another_reward_are_compared_with_a_note(
    finished: Run, begin: Callable[..., Run], tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    task = load_task(finished.workspace.task.source, combine="all")
    other = Run.create(
        tmp_path / "all", task=task, model=str(tiny_folder()), max_rounds=0, device={"threads": 1, "device": "cpu"}
    )
    other.adapt()
    assert not compare([finished.folder, other.folder]).one_task
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["compare", str(finished.folder), str(other.folder)])
    assert "another yardstick" in shown.output


def test_an_unfinished_run_has_nothing_to_compare(finished: Run, begin: Callable[..., Run]) -> None:
    with pytest.raises(RunError, match="no test scores: let it finish"):
        compare([finished.folder, begin().folder])


def test_nothing_is_no_comparison() -> None:
    with pytest.raises(RunError, match="name at least one run"):
        compare([])


def test_runs_of_other_questions_are_not_compared(finished: Run, tmp_path: Path) -> None:
    other = shutil.copytree(finished.folder, tmp_path / "other")
    path = other / "result" / "test.jsonl"
    rows = [{**json.loads(line), "question_sha256": "0"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match="tested on other questions"):
        compare([finished.folder, other])
