"""What a run begins with, and that nothing of it changes behind its back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakePolicy
from huggingface_hub.errors import LocalEntryNotFoundError
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.folder import write_record
from nslora.graph.runs.run import Run
from nslora.tools.errors import ModelError, NsloraError, RunError, SettingsError
from nslora.tools.tasks.task import Task

Begin = Callable[..., Run]


def test_a_run_that_is_overwritten_leaves_nothing_of_its_editors_record(begin: Begin) -> None:
    first = begin("again", strategy="textgrad", max_rounds=1)
    first.adapt()
    calls = (first.folder / "editor.jsonl").read_text()
    second = begin("again", strategy="textgrad", max_rounds=1, overwrite=True)
    assert not (second.folder / "editor.jsonl").exists()
    second.adapt()
    assert (second.folder / "editor.jsonl").read_text().count("\n") == calls.count("\n")


def test_of_two_processes_that_begin_one_folder_the_second_is_told(begin: Begin) -> None:
    run = begin()
    with pytest.raises(RunError, match="by another process just now"):
        write_record(run.workspace, editor_is_object=False)


def test_a_run_that_has_begun_is_not_begun_again_on_top(finished: Run) -> None:
    with pytest.raises(RunError, match="give the graph None"):
        Run.open(finished.folder).first_state()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 2**32}, "less than 4294967296"),
        ({"lora": {"nope": 1}}, "known: rank, alpha"),
        ({"device": {"threads": 10**5}}, "1024"),
        ({"device": {"device": "banana"}}, "device.device"),
        ({"engine": {"shards": 3}}, "engine.shards is 3, but lora.batch_size is 8"),
        ({"engine": {"replies": "http://me:secret@host"}}, r"password or query, because(?!.*secret)"),
        ({"engine": {"replies": "http://host"}, "lora": {"use_dora": True}}, "vLLM serves no DoRA"),
        ({"lora": {"learning_rate": float("inf")}}, "learning_rate"),
        ({"lora": {"learning_rate": 1e300}}, "learning_rate"),
        ({"editor_base_url": "http://127.0.0.1:9/v1"}, "name the model"),
        ({"editor": lambda: None}, "no chat model"),
    ],
)
def test_what_could_never_run_is_refused_before_a_folder_is_made(
    keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path], settings: Any, words: str
) -> None:
    with pytest.raises(NsloraError, match=words):
        Run.create(tmp_path / "run", task=keepers, model=str(tiny_folder()), **settings)
    assert not (tmp_path / "run").exists()


class Nameless:
    name = "mine"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "handbook"}, r"task='handbook' is no Task: give load_task"),
        ({"task": Path("tasks/mine")}, "load_task"),
        ({"task": None}, "load_task"),
        ({"model": object()}, "model=object is no Policy"),
        (
            {"model": Nameless()},
            "it lacks fingerprint, context_tokens, count_tokens, describe, generate, reference_losses, train",
        ),
        ({"model": FakePolicy}, "model=the class FakePolicy is no Policy"),
        ({"checkpoints": Path("x.sqlite")}, "Path is no checkpointer: wanted postgresql://"),
        ({"checkpoints": True}, "checkpoints=bool is no checkpointer"),
        ({"checkpoints": SqliteSaver.from_conn_string(":memory:")}, r"open it first, as in: with SqliteSaver"),
        ({"checkpoints": AsyncSqliteSaver.from_conn_string(":memory:")}, "open it first"),
    ],
)
def test_objects_that_are_none_of_what_is_wanted_are_refused_before_a_folder_is_made(
    finished: Run, keepers: Task, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    policy, run = FakePolicy(tmp_path / "adapters"), finished
    with pytest.raises(SettingsError, match=words):
        Run.create(tmp_path / "run", **{"task": keepers, "model": policy, **given})
    assert not (tmp_path / "run").exists()
    before = sorted(run.folder.iterdir())
    with pytest.raises((SettingsError, RunError), match=f"{words}|Give the task too"):
        Run.open(run.folder, **{"model": policy, **({} if given == {"task": None} else {"task": keepers}), **given})
    assert sorted(run.folder.iterdir()) == before


def test_a_models_folder_may_be_a_path(keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    run = Run.create(
        tmp_path / "run", task=keepers, model=tiny_folder(), max_rounds=0, device={"threads": 1, "device": "cpu"}
    )
    assert run.workspace.settings.model == str(tiny_folder())
    assert Run.open(run.folder).adapt().report["rounds"] == []
    with pytest.raises(ModelError, match="Unknown model 'nowhere'"):
        Run.create(tmp_path / "other", task=keepers, model=Path("nowhere"))
    assert not (tmp_path / "other").exists()


def test_a_policy_is_taken_without_asking_for_what_loads_it(keepers: Task, tmp_path: Path) -> None:
    class Lazy(FakePolicy):
        @property
        def fingerprint(self) -> str:  # type: ignore[override]
            raise AssertionError("loaded")

    Run.create(tmp_path / "run", task=keepers, model=Lazy(tmp_path / "adapters"))


def test_a_models_folder_is_recorded_as_an_absolute_path(
    keepers: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder()
    monkeypatch.chdir(folder.parent)
    assert Run.create(tmp_path / "run", task=keepers, model=folder.name).workspace.settings.model == str(folder)


def test_a_model_that_the_hub_does_not_give_is_named_before_a_folder_is_made(
    begin: Begin, tmp_path: Path, keepers: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: str) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", nowhere)
    with pytest.raises(ModelError, match="nobody/nothing' cannot be fetched"):
        Run.create(tmp_path / "run", task=keepers, model="nobody/nothing")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"targets": ["query"]}, r"lora.targets names query, .* q_proj"),
        ({"top_blocks": 99}, "lora.top_blocks is 99, the model has"),
    ],
)
def test_targets_that_the_model_lacks_are_told_before_a_folder_is_made(
    tmp_path: Path, tiny_folder: Callable[..., Path], keepers: Task, lora: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        Run.create(tmp_path / "run", task=keepers, model=str(tiny_folder()), lora=lora)
    assert not (tmp_path / "run").exists()
    shell = CliRunner(env={"COLUMNS": "160"})
    settings = [f"lora.{name}={json.dumps(value)}" for name, value in lora.items()]
    told = shell.invoke(
        app,
        [
            "run",
            keepers.source,
            "--folder",
            str(tmp_path / "run"),
            "--model",
            str(tiny_folder()),
            "--dry-run",
            "--set",
            *settings,
        ],
    )
    assert told.exit_code == 1
    assert re.search(said, str(told.exception))


def test_a_hub_id_that_leads_nowhere_is_told_as_such_whatever_lora_is_to_go_on(
    tmp_path: Path, keepers: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: Any, **__: Any) -> Any:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", nowhere)
    with pytest.raises(ModelError, match="cannot be fetched from the Hugging Face Hub"):
        Run.create(tmp_path / "run", task=keepers, model="nobody/nothing", lora={"targets": ["q_proj"]})


def test_a_run_can_be_given_other_servers_and_another_launcher(begin: Begin) -> None:
    run = begin()
    run.connect(replies="http://one:8000,http://two:8000/", launch="torchrun")
    settings = Run.open(run.folder).workspace.settings.engine
    assert (settings.replies, settings.launch) == (("http://one:8000", "http://two:8000"), "torchrun")
    run.connect(replies="local")
    assert (run.workspace.settings.engine.replies, run.workspace.settings.engine.launch) == ("local", "torchrun")
    with pytest.raises(SettingsError, match="must be local, ray, ray://host:10001, or addresses"):
        run.connect(replies="here")
