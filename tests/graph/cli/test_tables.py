"""Runs in tables."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.tools.errors import RunError

Begin = Callable[..., Run]


def test_a_run_that_waits_says_so_and_how_to_answer(begin: Begin) -> None:
    run = begin("waits", approve="edits", strategy="textgrad", max_rounds=1)
    with pytest.raises(RunError, match="waits for a person"):
        run.adapt()
    assert look(run.folder).status == "waiting"
    shell = CliRunner(env={"COLUMNS": "60"})
    shown = shell.invoke(app, ["show", str(run.folder)]).output
    assert f"answer   nslora resume {run.folder} --accept | --reject | --prompt FILE" in shown.splitlines()
    run.resume({"answer": "accept"})
    assert look(run.folder).status == "finished"
    assert not (run.folder / "question.json").exists()
    assert "answer" not in shell.invoke(app, ["show", str(run.folder)]).output


def test_a_list_of_runs_names_each_folder_whole_in_a_narrow_terminal(finished: Run, tmp_path: Path) -> None:
    names = [f"handbook-2026-11-26-{number}" for number in ("101500", "101501")]
    for name in names:
        (tmp_path / name).symlink_to(finished.folder.resolve())
    listed = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["runs", str(tmp_path)]).output
    column = "".join(line.split("│")[-2].strip() for line in listed.splitlines() if "│" in line)
    assert all(str(tmp_path / name) in column for name in names)
