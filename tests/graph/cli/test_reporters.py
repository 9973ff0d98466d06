"""A run tells people, nobody or a program what it does: one line of progress, silence, or JSON lines."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.cli.meter import Meter
from nslora.graph.cli.plain_console import PlainConsole
from nslora.graph.cli.progress import progress_line
from nslora.graph.cli.reporters import ForPrograms
from nslora.graph.runs.run import Run
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.settings import RunSettings


@pytest.mark.parametrize("width", [40, 80, 200])
def test_progress_fits_one_line_with_the_time_left_and_the_money(width: int) -> None:
    console = PlainConsole(file=io.StringIO(), width=width, force_terminal=True)
    bar = progress_line(console)
    words = "textgrad_edit: replies to the train questions under the proposed prompt"
    bar.add_task(words, total=9999, completed=1234, run="round 12, max 2.5 h left, cost 12.34")
    shown = PlainConsole(file=io.StringIO(), width=width)
    shown.print(bar.get_renderable())
    (line,) = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(line) <= width
    assert width < 80 or all(each in line for each in ("textgrad", "1234/9999", "max 2.5 h left, cost 12.34"))


def test_a_meter_expects_what_the_longest_steps_of_the_run_took(task: Task) -> None:
    meter = Meter(task, RunSettings(max_rounds=3))
    assert (meter.left_s, meter.line()) == (None, "")
    meter.saw({"start_measured": {"wall_s": 16.0}, "wall_s": 16.0})
    first = meter.left_s
    assert first is not None
    spent = {"wall_s": 100.0, "trained_tokens": 5, "flop": 0.0, "editor": {"cost": 0.25}, "action": "textgrad"}
    meter.saw({"proposal": {"editor": {"cost": 0.25}}, "wall_s": 84.0})
    assert meter.cost == 0.25  # while the edit waits for its evaluation
    meter.saw({"rounds": [spent], "proposal": None})
    assert meter.cost == 0.25
    # Two rounds, each 1.25 x (100 s and an evaluation of 16 s), and the test.
    assert meter.left_s == pytest.approx(2 * 1.25 * (100 + 16) + 1.25 * 2 * len(task.test), rel=0.05)
    assert meter.line().startswith("round 2, max 5 min left, cost 0.25")
    capped = Meter(
        task, RunSettings(max_rounds=3, max_seconds=130.0), {"start_measured": {"wall_s": 16.0}, "wall_s": 100.0}
    )
    assert capped.left_s == pytest.approx(30.0, abs=0.5)


def test_programs_get_one_json_line_per_event_and_a_quiet_run_prints_nothing(
    own_cache: Path, keepers: Task, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    run, shell = str(tmp_path / "run"), CliRunner()
    words = [keepers.source, "--model", str(tiny_folder()), "--max-rounds", "1", "--strategy", "textgrad"]
    words += ["--folder", run, "--set", "reuse_replies=false"]  # replies that are known make no progress
    ran = shell.invoke(app, ["run", *words, "--json"])
    assert ran.exit_code == 0, ran.output
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    kinds = [each["event"] for each in events]
    assert list(dict.fromkeys(each for each in kinds if each not in ("note", "progress"))) == [
        *("begins", "start", "decision", "round", "stop", "result")
    ]
    by_kind = dict(zip(kinds, events, strict=True))
    assert by_kind["begins"]["rows"] == {"train": 6, "validation": 6, "test": 6}
    assert by_kind["progress"].keys() >= {"node", "what", "done", "total"}
    assert by_kind["round"]["left_s"] >= 0
    report = Run.open(run).report()
    assert by_kind["round"]["reward_after"] == report["rounds"][0]["reward_after"]
    assert by_kind["result"]["test"] == report["test"]
    again = shell.invoke(app, ["resume", run, "--quiet"])
    assert (again.exit_code, again.output) == (0, "")
    piped = shell.invoke(app, ["resume", run])
    assert "all checks" in piped.output
    assert "\x1b" not in piped.output  # no colours in a pipe
    assert "not both" in str(shell.invoke(app, ["resume", run, "--quiet", "--json"]).exception)


def test_a_number_that_json_lacks_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    ForPrograms().ended(
        Path("run"), {"result": {}, "test": {"p": [math.nan]}, "validation": {}, "cost": {}, "wall_s": 1.0, "stop": ""}
    )
    assert json.loads(capsys.readouterr().out)["test"] == {"p": [None]}
