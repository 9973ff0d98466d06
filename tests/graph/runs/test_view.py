"""Runs can be looked at as typed objects and as tables, without a model."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.view import look, runs
from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError


def test_a_run_is_an_object_with_its_rounds(finished: Run) -> None:
    view = look(finished.folder)
    assert (view.status, view.task, view.problem) == ("finished", "keepers", "")
    assert [each.action for each in view.rounds] == ["textgrad", "textgrad", "lora"]
    assert view.start_reward == view.rounds[0].reward_before
    assert view.stop == "round limit of 3 reached"
    assert view.rounds[2].trained_tokens > 0


def test_a_round_shows_its_failures_rows_critiques_and_diff(finished: Run) -> None:
    view = look(finished.folder)
    edit, burst = view.round(1), view.round(3)
    assert {each.split for each in edit.failures} == {"train", "validation"}
    assert {each.attribution.verdict for each in edit.failures} <= {"content", "form", "both"}
    assert edit.critiques
    assert "+# Demonstration 1" in edit.diff
    assert edit.training_rows == ()
    assert {row.origin for row in burst.training_rows} <= {"reference", "remade", "replay"}
    assert burst.training_rows
    with pytest.raises(RunError, match="no round 4: it has 3"):
        view.round(4)


def test_runs_are_listed_and_an_unreadable_one_is_named(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "good").symlink_to(finished.folder.resolve())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    good, bad = runs(tmp_path)
    assert good.best_reward is not None
    assert (bad.status, "missing or damaged" in bad.problem) == ("unreadable", True)


def test_the_shell_shows_what_python_shows(finished: Run) -> None:
    shell = CliRunner(env={"COLUMNS": "200"})
    listed = shell.invoke(app, ["runs", str(finished.folder.parent)])
    assert "keepers" in listed.output
    rounds = shell.invoke(app, ["show", str(finished.folder)])
    assert "round limit of 3" in rounds.output
    one = shell.invoke(app, ["show", str(finished.folder), "--round", "1"])
    for part in ("verdict", "critique 1", "Demonstration 1"):
        assert part in one.output
    assert "mermaid" in shell.invoke(app, ["graph", "--help"]).output
    drawn = shell.invoke(app, ["graph", "--mermaid"]).output
    assert all(node in drawn for node in ("evaluate", "approve", "finish"))
