"""Runs can be looked at as typed objects and as tables, without a model."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.lock import LOCK_FILE, sole_writer
from nslora.graph.runs.compare import compare
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look, runs
from nslora.tools.dataset.selection import Material
from nslora.tools.errors import DamagedError, RunError
from nslora.tools.files import read_json, write_json


def test_a_run_is_an_object_with_its_rounds(finished: Run) -> None:
    view = look(finished.folder)
    assert (view.status, view.task, view.problem) == ("finished", "keepers", "")
    assert [each.action for each in view.rounds] == ["textgrad", "textgrad", "lora"]
    assert view.start_reward == view.rounds[0].reward_before
    assert view.stop == "round limit of 3 reached"
    assert view.rounds[2].trained_tokens > 0


def test_a_round_shows_its_failures_rows_critiques_and_diff(finished: Run) -> None:
    view = look(finished.folder)
    edit, job = view.round(1), view.round(3)
    assert {each.split for each in edit.failures} == {"train", "validation"}
    assert {each.attribution.verdict for each in edit.failures} <= {"content", "form", "both"}
    assert edit.critiques
    assert "+# Demonstration 1" in edit.diff
    assert edit.training_rows == ()
    assert {row.origin for row in job.training_rows} <= {"reference", "remade", "replay"}
    assert job.training_rows
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
    asked = shell.invoke(app, ["show", str(finished.folder), "--round", "1", "--editor"])
    for part in ("call 1: ", "sent system", "optimization system", "reply", "rows shown: 1 train-"):
        assert part in asked.output
    trained = shell.invoke(app, ["show", str(finished.folder), "--round", "3", "--editor"])
    assert "no editor was asked" in trained.output
    refused = shell.invoke(app, ["show", str(finished.folder), "--editor"])
    assert "--round 1 --editor" in str(refused.exception)
    assert "mermaid" in shell.invoke(app, ["graph", "--help"]).output
    drawn = shell.invoke(app, ["graph", "--mermaid"]).output
    assert all(node in drawn for node in ("evaluate", "approve", "finish"))


Begin = Callable[..., Run]


@pytest.mark.parametrize("field", [("test", "base"), ("validation", "result"), ("cost", "tflop")])
def test_a_report_that_lacks_a_part_is_damaged(finished: Run, tmp_path: Path, field: tuple[str, str]) -> None:
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    report = read_json(copy / "result" / "report.json")
    report[field[0]][field[1]] = {}
    if field[1] == "tflop":
        del report["cost"]["tflop"]
    write_json(copy / "result" / "report.json", report)
    with pytest.raises(DamagedError, match=rf"report.json is damaged: it lacks .*{field[0]}\.{field[1]}"):
        look(copy)


@pytest.mark.parametrize("rounds", [[{}], [1], 3, None])
def test_a_report_whose_rounds_are_none_is_damaged(finished: Run, tmp_path: Path, rounds: object) -> None:
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    write_json(copy / "result" / "report.json", {**read_json(copy / "result" / "report.json"), "rounds": rounds})
    with pytest.raises(DamagedError, match=r"report\.json or"):
        look(copy)


@pytest.mark.parametrize("line", ["[1]", '{"candidate": "result"}', "3"])
def test_scores_and_rounds_that_are_none_are_damaged(finished: Run, tmp_path: Path, line: str) -> None:
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    (copy / "result" / "test.jsonl").write_text(f"{line}\n")
    with pytest.raises(DamagedError, match=r"test.jsonl is damaged"):
        compare([finished.folder, copy])
    (copy / "decisions.jsonl").write_text(f"{line}\n")
    with pytest.raises(DamagedError, match=r"decisions.jsonl is damaged"):
        look(copy)


@pytest.mark.parametrize(
    "broken",
    [
        {"content": None},
        {"deficits": [1]},
        {"deficits": {"train-1": [0.5]}},
    ],
)
def test_material_that_is_none_is_damaged(finished: Run, tmp_path: Path, broken: dict[str, object]) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    (file,) = (folder / "material").glob("1-*.json")
    write_json(file, {**read_json(file), **broken})
    with pytest.raises(DamagedError, match=rf"{file.name} is damaged"):
        Material.load(file)


def test_looking_at_a_run_does_not_stop_it_from_being_resumed(begin: Begin) -> None:
    run = begin()
    (run.folder / LOCK_FILE).touch()
    looking = FileLock(run.folder / LOCK_FILE, thread_local=False)  # released by another thread
    looking.acquire()
    threading.Timer(0.1, looking.release).start()
    with sole_writer(run.folder):
        pass
