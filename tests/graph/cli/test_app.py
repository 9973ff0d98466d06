"""The command line: one clear sentence, a non-zero exit, and nothing written where the input is bad."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nslora.graph.cli import app as cli
from nslora.graph.cli.app import app
from nslora.graph.cli.common import parsed
from nslora.graph.runs.adapt import default_folder
from nslora.graph.runs.folder import read_settings
from nslora.tools.errors import NsloraError, SettingsError, StoppedError, TaskError
from nslora.tools.tasks.task import load_task


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one sentence with which `nslora run` refuses; the working folder must stay as it was."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["run", *arguments])
    assert isinstance(result.exception, NsloraError), result.output
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(result.exception)
    return str(result.exception)


def write_task(folder: Path, checks: object = ("exact_match",), **splits: object) -> str:
    folder.mkdir()
    rows = {
        "train": [{"question": "a?", "reference": "A"}],
        "validation": [{"question": "b?", "reference": "B"}],
        "test": [{"question": "c?", "reference": "C"}],
        **splits,
    }
    for name, values in rows.items():
        text = values if isinstance(values, str) else "".join(json.dumps(row) + "\n" for row in values)  # type: ignore[attr-defined]
        (folder / f"{name}.jsonl").write_text(text)
    data = {name: f"{name}.jsonl" for name in rows}
    (folder / "task.yaml").write_text(json.dumps({"name": "t", "data": data, "reward": {"checks": checks}}))
    return str(folder / "task.yaml")


ROW = {"question": "a?", "reference": "A"}
BAD_TASKS = {
    "malformed JSON": ({"train": '{"question": "a?", "reference": "A"}\n{oops\n'}, "train.jsonl:2"),
    "missing field": ({"train": [{"prompt": "a?", "reference": "A"}]}, "no field 'question'"),
    "empty split": ({"validation": []}, "validation"),
    "overlap": ({"test": [ROW]}, "1"),
    "reference that is no text": ({"train": [{"question": "a?", "reference": {"km": 7}}]}, "reference"),
    "unknown check": ({"checks": ["smells_right"]}, "exact_match"),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_a_bad_task_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes, words = BAD_TASKS[name]
    assert words in refused(tmp_path, monkeypatch, write_task(tmp_path / "task", **changes))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/task.yaml"], "no/such/task.yaml"),
        (["handbook", "--style", "verse"], "bullet"),
        (["handbook", "--model", "no such model"], "SmolLM2-135M-Instruct"),
        (["handbook", "--editor", "quill"], "rules"),
        (["handbook", "--strategy", "hope"], "neurosymbolic"),
        (["handbook", "--track", "tracked:RecordingTracker", "--track", "mlfow"], "known are mlflow, wandb"),
        (["handbook", "--set", "lora.rank=0"], "lora.rank"),
        (["handbook", "--set", "lora.colour=red"], "lora.colour"),
        (["handbook", "--set", "nonsense"], "name=value"),
    ],
)
def test_a_bad_argument_is_refused_with_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    assert words in refused(tmp_path, monkeypatch, *arguments)


LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--folder", LONG], "name another one"),
        (["--folder", f"new/{LONG}/sub"], "name another one"),
        (["--folder", LONG, "--overwrite"], "name another one"),
        (["--model", LONG], "Unknown model 'xxx"),
        (["--editor", f"recorded:{LONG}"], "There is no record xxx"),
        (["--set", f"anchor={LONG}.jsonl"], "File name too long"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_name_that_no_file_system_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str, dry: list[str]
) -> None:
    # Without --model it would be the embedded one, which takes seconds to convert.
    model = [] if "--model" in arguments else ["--model", "them/it"]
    assert words in refused(tmp_path, monkeypatch, write_task(tmp_path / "task"), *arguments, *model, *dry)


def test_a_name_that_no_file_system_takes_is_one_sentence_for_every_command(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    (tmp_path / "r.jsonl").write_text('{"question": "a?", "reply": "A"}\n')
    for begin, arguments in (
        ("error", ["runs", LONG]),
        ("error", ["classify", task, "--replies", f"{LONG}.jsonl"]),
        ("error task: ", ["run", LONG]),
        ("error", ["classify", task, "--replies", "r.jsonl", "--json", LONG]),
        ("error", ["diagnose", task, "--model", LONG]),
    ):
        done = subprocess.run(
            [str(Path(sys.executable).with_name("nslora")), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(begin)
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("four years")
    assert "exists" in refused(tmp_path, monkeypatch, "handbook", "--folder", "mine")
    assert "not the folder of a run" in refused(tmp_path, monkeypatch, "handbook", "--folder", "mine", "--overwrite")


def test_a_reward_that_breaks_its_promise_is_named_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(tmp_path / "task", checks=["broken_reward:judge"])
    (tmp_path / "task" / "broken_reward.py").write_text("def judge(reply):\n    return float('nan')\n")
    assert "train-1" in refused(tmp_path, monkeypatch, task)


def test_an_earlier_run_is_not_overwritten_by_one_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "run.json").write_text("{}")
    refused(tmp_path, monkeypatch, "handbook", "--folder", "earlier", "--overwrite", "--model", "no such model")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1e6, "total": 1e9, "used": 9e8})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert "make room" in refused(tmp_path, monkeypatch, "handbook", "--folder", "new")


def test_settings_errors_name_the_setting() -> None:
    with pytest.raises(SettingsError, match="max_rounds"):
        read_settings(max_rounds=-1)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("seed=5", "--seed"),
        ("model.x=3", "--model"),
        ("notify=x", "in Python only"),
        ("folder=x", "--folder"),
        ("lora.rank=[1", "cannot be read"),
        ("lora.rank=2024-13-45", "cannot be read"),
        ("editing=3", "is a group of settings"),
    ],
)
def test_a_setting_that_cannot_be_set_so_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assignment: str, words: str
) -> None:
    task = write_task(tmp_path / "task")
    assert words in refused(tmp_path, monkeypatch, task, "--max-editor-calls", "3", "--set", assignment)


def test_a_value_and_a_group_of_one_name_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="group of settings"):
        parsed(["lora=3", "lora.rank=16"])


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1", "claude-3.5-haiku", "openai:gpt-4.1-mini", "a.b.c"])
def test_a_price_may_be_set_of_a_model_with_dots_in_its_name(model: str) -> None:
    prices = {model: {"input": 2, "output": 8.5}}
    assignments = [f"editing.prices.{model}.input=2", f"editing.prices.{model}.output=8.5", "editing.max_cost=1"]
    assert parsed(assignments) == {"editing": {"prices": prices, "max_cost": 1}}
    assert parsed([f"editing.prices.{model}={{input: 2, output: 8.5}}"]) == {"editing": {"prices": prices}}
    with pytest.raises(SettingsError, match=re.escape(f"editing.prices.{model}.price")):
        read_settings(**parsed([f"editing.prices.{model}.price=2"]))


def test_a_price_that_is_missing_is_told_as_the_shell_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    arguments = [write_task(tmp_path / "task"), "--dry-run", "--editor", "openai:gpt-4.1", "--max-cost", "1"]
    told = refused(tmp_path, monkeypatch, *arguments)
    setting = "--set editing.prices.gpt-4.1."
    assert f"{setting}input=... {setting}output=..." in told
    priced = [word for name in ("input", "output") for word in f"{setting}{name}=1".split()]
    assert CliRunner().invoke(app, ["run", *arguments, *priced]).exit_code == 0


@pytest.mark.parametrize(
    ("option", "value"), [("--strategy", "bogus"), ("--model", "nosuchmodel"), ("--editor", "bogus")]
)
def test_a_dry_run_refuses_what_a_run_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    assert value in refused(tmp_path, monkeypatch, write_task(tmp_path / "task"), "--dry-run", option, value)


@pytest.mark.parametrize(
    ("name", "wanted"), [("../../escape", "escape"), ("x" * 300, "x" * 80), ("[dev] ü", "dev-ü"), ("...", "run")]
)
def test_a_tasks_name_stays_inside_the_folder_of_runs(name: str, wanted: str) -> None:
    assert default_folder(name).parent == Path("runs")
    assert default_folder(name).name.startswith(f"{wanted}-2")


def test_a_task_without_a_name_is_called_after_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write_task(tmp_path / "unnamed"))
    path.write_text(path.read_text().replace('"name": "t", ', ""))
    monkeypatch.chdir(path.parent)
    assert load_task(".").name == "unnamed"


def test_a_file_for_what_was_found_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "replies.jsonl").write_text(json.dumps({"question": "a?", "reference": "A", "reply": "x"}) + "\n")
    result = CliRunner().invoke(
        app,
        [
            "classify",
            write_task(tmp_path / "task"),
            "--replies",
            str(tmp_path / "replies.jsonl"),
            "--json",
            str(tmp_path),
        ],
    )
    assert isinstance(result.exception, SettingsError), result.output
    assert "cannot be written" in str(result.exception)


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (StoppedError("the reward cannot be reached"), 3, "stopped: the reward cannot be reached"),
        (TaskError("no rows"), 1, "task: no rows"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 1, "is too long for a file"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "output: it cannot be written: No space left on device"),
        (SystemExit(2), 1, ""),
        (SystemExit(130), 130, ""),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(
    raised: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise raised

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == status
    assert said in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "notes.txt")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(PermissionError):
        cli.main()
