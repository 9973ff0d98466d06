"""A sweep: every cell once, one record, one table; refused as a whole if a cell cannot be used."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from langgraph.runtime import RunControl
from typer.testing import CliRunner

from nslora import Task, sweep
from nslora.errors import NsloraError, SettingsError
from nslora.graph.cli.app import app
from nslora.graph.lock import sole_writer
from nslora.graph.runs.run import Run
from nslora.graph.sweep.cells import grid_cells
from nslora.graph.sweep.jobs import Event, Job
from nslora.graph.sweep.run_cell import record_of
from nslora.tools.files import read_jsonl


class Pretended:
    """An executor that runs nothing. fails: what the names of failing jobs end with. most: jobs until it stops."""

    def __init__(self, result: dict[str, Any], fails: str = "nothing", most: int = 99) -> None:
        self.result, self.fails, self.most = result, fails, most
        self.groups: list[list[Job]] = []

    def run(self, groups: Sequence[Sequence[Job]], control: RunControl) -> Iterator[Event]:
        self.groups = [list(group) for group in groups]
        for job in [each for group in groups for each in group][: self.most]:
            yield Event(job, "started")
            if job.name.endswith(self.fails):
                yield Event(job, "failed", error="out of luck", wall_s=2.0)
            else:
                yield Event(job, "finished", self.result, wall_s=60.0)


@pytest.fixture
def result() -> dict[str, Any]:
    """What `record_of` gives; the test with real runs compares it with theirs."""
    return {
        "base": {"reward": 0.1, "all_checks": 0.0, "interval": [0.0, 0.1]},
        "result": {"reward": 0.7, "all_checks": 0.5, "interval": [0.4, 0.6]},
        "changed": True,
        "rounds": [{"action": "textgrad", "kept": False}, {"action": "lora", "kept": True}],
        "cost": {"tflop": 2.0, "test_tflop": 0.5},
    }


@pytest.fixture
def grid(keepers: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return {
        "tasks": [keepers.source, {"task": keepers.source, "combine": "all"}],
        "strategies": ["lora", "textgrad"],
        "seeds": 2,
        "settings": {"max_rounds": 3, "lora": {"epochs": 2}},
        "variants": {"low": {"lora": {"rank": 4}}, "high": {"lora": {"rank": 16}}},
    }


def test_a_sweep_runs_every_combination_once_and_goes_on_from_its_record(
    grid: dict[str, Any], result: dict[str, Any]
) -> None:
    Path("two.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    lines: list[str] = []
    first = Pretended(result, fails="lora, seed 1", most=9)
    found = sweep("two.yaml", on=first, notify=lines.append)
    assert [len(group) for group in first.groups] == [4, 4, 4, 4]  # those that may share training jobs, in sequence
    assert (len(found.rows), len(found.failed), found.left) == (9, 1, 7)
    assert found.failed[0].endswith("low, lora, seed 1: out of luck")
    # 8 min 2 s for nine cells, and seven are left
    assert lines[-1].startswith("failed   9 of 16: ")
    assert lines[-1].endswith("out of luck, 2 s; about 6 min 15 s left")
    settings = first.groups[0][0].arguments["settings"]
    assert settings["lora"] == {"epochs": 2, "rank": 4}
    again = Pretended(result)
    found = sweep("two.yaml", on=again, jobs=2)
    assert sum(map(len, again.groups)) == 8  # the failed one is tried again
    assert (len(found.rows), found.failed, found.left) == (16, [], 0)
    idle = Pretended(result)
    assert sweep("two.yaml", on=idle).table == found.table
    assert not idle.groups
    seeds = sweep({**grid, "seeds": [1]}, folder="sweeps/two", on=idle)
    assert (len(seeds.rows), idle.groups) == (8, [])  # cells are known by what decides them, not by their file
    with Path("sweeps/two/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"1"}
    assert (rows[0]["rounds"], rows[0]["result.interval.1"]) == ("(textgrad) lora", "0.6")
    assert len(found.table.splitlines()) == 1 + 8  # seeds are averaged
    columns, line = (each.split() for each in found.table.splitlines()[:2])
    assert dict(zip(columns[-8:], [*line[-10:-6], " ".join(line[-6:-3]), *line[-3:]], strict=True)) == {
        "seeds": "2", "base": "0.100", "result": "0.700", "gain": "+0.600", "changed": "2 of 2", "updates": "2.0",
        "TFLOP": "2.5", "minutes": "1.0",
    }  # fmt: skip


def test_cells_in_a_list_may_be_alike_in_nothing(
    keepers: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = {"task": keepers.source, "seed": 3}
    executor = Pretended(result)
    found = sweep([cell, dict(cell), {**cell, "lora": {"rank": 2}}], on=executor, share=False)
    assert [len(group) for group in executor.groups] == [1, 1]
    assert [row["settings"] for row in found.rows] == [{}, {"lora": {"rank": 2}}]
    assert found.folder == Path("sweeps/sweep")
    with sole_writer(found.folder), pytest.raises(NsloraError, match="in use by process"):
        sweep([cell], on=executor)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": []}, "tasks"),
        ({"colours": ["red"]}, "colours: .*known: tasks, models"),
        ({"strategies": ["hope"]}, "Cell 1 .*neurosymbolic"),
        ({"settings": {"lora": {"epochs": 0}}}, "lora.epochs"),
        ({"tasks": ["no/such/task.yaml"]}, "no/such"),
        ({"tasks": [3]}, "tasks"),
        ({"models": ["no such model"]}, "no such model"),
        ({"settings": {"seed": 3}}, "seed"),
        ({"variants": {"a": {"strategy": "lora"}}}, "strategy"),
    ],
)
def test_a_sweep_with_a_wrong_cell_is_refused_before_anything_is_written(
    grid: dict[str, Any], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(NsloraError, match=words) as refused:
        sweep({**grid, **changes}, on=Pretended({}))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_sweep_is_refused(grid: dict[str, Any], tmp_path: Path) -> None:
    Path("list.yaml").write_text("- 1")
    for cells, words in (("list.yaml", "no mapping"), ("none.yaml", "cannot be read"), ([{"seed": 1}], "'task'")):
        with pytest.raises(SettingsError, match=words):
            sweep(cells)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="wanted local"):
        sweep(grid, on="the moon")
    with pytest.raises(SettingsError, match="wanted 1 or more"):
        sweep(grid, jobs=0)
    assert len(grid_cells(grid)) == 16


@pytest.mark.engines  # two processes that import everything
def test_a_sweep_that_is_killed_goes_on_where_it_was_and_repeats_nothing(
    own_cache: Path, keepers: Task, tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = {"epochs": 2, "batch_size": 4, "learning_rate": 3e-2, "rank": 4, "top_blocks": 4}
    grid = {
        "tasks": [keepers.source],
        "models": [str(tiny_folder())],
        "strategies": ["textgrad -> lora", "lora"],
        "settings": {"max_rounds": 3, "keep": {"level": 0.45}, "lora": lora, "device": {"device": "cpu", "threads": 1}},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    command = [sys.executable, "-m", "nslora.graph.cli", "sweep", "tiny.yaml"]

    def rounds() -> int:
        return sum(len(read_jsonl(path)) for path in Path("sweeps/tiny/runs").glob("*/decisions.jsonl"))

    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while rounds() < 1:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    interrupted = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while rounds() < 4:  # in the second cell
        assert interrupted.poll() is None
        time.sleep(0.02)
    interrupted.send_signal(signal.SIGINT)
    said = interrupted.communicate()[1]
    assert (interrupted.returncode, "Go on with: nslora sweep tiny.yaml" in said) == (130, True), said
    done = CliRunner().invoke(app, ["sweep", "tiny.yaml"])
    assert done.exit_code == 0, done.output
    (first, second) = read_jsonl(Path("sweeps/tiny/sweep.jsonl"))
    assert (first["status"], second["status"]) == ("finished", "finished")
    alone = Run.create("alone", task=keepers, **{**grid["settings"], "model": grid["models"][0]}, strategy="lora")
    report = alone.adapt().report
    assert second["rounds"] == record_of(report)["rounds"]
    assert second["cost"]["tflop"] == report["cost"]["tflop"]  # counted as if it had shared nothing
    assert os.path.exists("sweeps/tiny/table.csv")
