"""Runs that version 0.1.0 left open, resume, replay, fork and show under the names and folders of today.

`finished` and `stopped` (after its first round) are of `FakePolicy` on the tiny task, `tiny` is of a tiny random Llama
on `handbook`; made at commit 6b12cf8. Their files are a format: names in Python may change, these may not.
"""

import shutil
from pathlib import Path

import pytest
from fakes import FakePolicy
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.fork import fork
from nslora.graph.runs.replay import replay
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.tools.errors import RunError
from nslora.tools.rewards.checks import Contains
from nslora.tools.tasks.task import task_from_rows
from nslora.tools.testing.tiny_task import KEEPERS, PLACES, SPLITS
from nslora.tools.workspace.record import read_run_file

OLD_RUNS = Path(__file__).with_name("old_runs")
CHECKS = [
    {"name": "fact", "check": "contains"},
    {
        "name": "style",
        "check": "regex",
        "pattern": "<[^<>]+>",
        "form": "<{reply}>",
        "wanted": "the answer between angle brackets",
    },
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUNS, tmp_path / "old"))


def opened(folder: Path) -> Run:
    rows = {
        split: [{"question": text.format(place=PLACES[i]), "reference": KEEPERS[i % 3]} for i in range(6)]
        for split, text in SPLITS.items()
    }
    task = task_from_rows(**rows, reward=CHECKS, name="keepers", max_new_tokens=12)
    return Run.open(folder, task=task, model=FakePolicy(folder / "adapters"))


def test_a_finished_run_shows_its_rounds_and_what_each_looked_at(old: Path) -> None:
    view = look(old / "finished")
    assert (view.status, [each.action for each in view.rounds]) == ("finished", ["textgrad", "lora", "lora"])
    details = view.round(2)
    assert details.failures
    assert {each.attribution.verdict for each in details.failures} <= {"content", "form", "both"}
    assert details.training_rows


def test_a_stopped_run_resumes_to_what_the_finished_one_came_to(old: Path) -> None:
    run, whole = opened(old / "stopped"), opened(old / "finished").report()
    report = run.resume().report
    assert report["result"] == whole["result"]
    assert {**report["test"], "gain": 0} == {**whole["test"], "gain": 0}
    assert report["test"]["gain"].items() >= whole["test"]["gain"].items()
    for one, other in zip(report["rounds"], whole["rounds"], strict=True):
        # 0.1.0 moved P(content) by what earlier updates had mended, which no decision hung on.
        assert {**one, "wall_s": 0, "editor": 0, "demand": 0} == {**other, "wall_s": 0, "editor": 0, "demand": 0}


def test_a_finished_run_replays_alike(old: Path, tmp_path: Path) -> None:
    found = replay(opened(old / "finished"), tmp_path / "again")
    assert found.differences == ()


def test_a_run_of_an_older_revision_of_a_check_is_shown_replayed_and_forked_at_0_but_not_resumed(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contains, "revision", 2)
    with pytest.raises(RunError, match=r"the check 'fact' had revision 1 and has revision 2.*--at 0"):
        opened(old / "stopped").resume()
    with pytest.raises(RunError, match="revision 2"):
        opened(old / "finished").resume(max_rounds=9)
    with pytest.raises(RunError, match="revision 2"):
        fork(opened(old / "finished"), tmp_path / "at-2", at=2)
    assert not (tmp_path / "at-2").exists()
    assert opened(old / "finished").resume().report["result"]  # has ended: nothing is scored
    assert opened(old / "finished").show().status == "finished"
    assert replay(opened(old / "finished"), tmp_path / "again").differences == ()
    anew = fork(opened(old / "finished"), tmp_path / "at-0", at=0)
    assert anew.adapt().report["task"]["hash"] != opened(old / "finished").report()["task"]["hash"]
    assert read_run_file(anew.folder)["task"]["checks"] == {"fact": 2}
    opened(anew.folder).resume()


def test_a_finished_run_forks(old: Path, tmp_path: Path) -> None:
    other = fork(opened(old / "finished"), tmp_path / "other", at=2, action="textgrad")
    assert [each["action"] for each in other.adapt().report["rounds"]][:2] == ["textgrad", "textgrad"]


def test_a_run_of_a_model_that_is_gone_is_shown_and_replayed_from_the_shell(old: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["show", str(old / "tiny"), "--round", "2"])
    assert shown.exit_code == 0, shown.output
    again = CliRunner().invoke(app, ["replay", str(old / "tiny"), "--into", str(tmp_path / "again")])
    assert "Decisions, rewards and hashes came out the same." in again.output, again.output
