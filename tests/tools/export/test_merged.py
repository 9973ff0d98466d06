"""The merged folder answers a plain client as the run did."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import begin_tiny_run
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.export import pair_of
from nslora.graph.runs.run import Run
from nslora.tools.errors import DamagedError, ExportError, RunError, SettingsError
from nslora.tools.export import pair as pairs
from nslora.tools.export.merged import Merged
from nslora.tools.files import read_json
from nslora.tools.tasks.task import Task


def test_a_plain_client_gets_the_runs_own_replies(known_pair: Callable[..., object], tmp_path: Path) -> None:
    known = known_pair()
    with pairs.written_whole(tmp_path / "merged") as partial:
        Merged.of(known.pair).save(partial)
    questions = ("Who keeps the mill?", "The bridge is kept by whom?", "Name the keeper.")
    assert plain_replies(tmp_path / "merged", questions) == list(known.replies)
    bare = plain_replies(tmp_path / "merged", questions, nslora=False)
    assert not {*bare} & {*known.replies}
    assert not {*bare} & {*known.base_replies}  # the switch concerns the prompt, not the weights
    assert read_json(tmp_path / "merged" / "nslora.json")["dtype"] == "float32"


def plain_replies(folder: Path, questions: Sequence[str], **switch: object) -> list[str]:
    """What any program gets that loads the folder by transformers and sends questions alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    replies = []
    for question in questions:
        asked = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True, **switch
        )
        reply = model.generate(**ids, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
        replies.append(str(tokenizer.decode(reply, skip_special_tokens=True)).strip())
    return replies


def test_the_command_writes_the_pair_that_the_run_chose(finished: Run, tmp_path: Path) -> None:
    target, chosen = tmp_path / "merged", finished.report()["result"]
    command = ["export", str(finished.folder), "--merged", str(target), "--dtype", "bfloat16", "--check"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "merged: 6 of 6 replies are the run's own; all checks 0.00" in done.output
    done = CliRunner().invoke(app, ["export", str(finished.folder), "--ollama", str(tmp_path / "ollama")])
    assert done.exit_code == 0, done.output
    assert "FROM ./finished.f16.gguf" in (tmp_path / "ollama" / "Modelfile").read_text()
    assert (tmp_path / "ollama" / "finished.f16.gguf").stat().st_size > 10_000
    named = read_json(target / "nslora.json")
    assert (named["adapter"], named["prompt"], named["dtype"]) == (chosen["adapter"], chosen["prompt"], "bfloat16")
    with pytest.raises(ExportError, match=r"is there already.*--overwrite"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    finished: Run, keepers: Task, tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"Say what to write"):
        CliRunner().invoke(app, ["export", str(finished.folder)], catch_exceptions=False)
    command = ["export", str(finished.folder), "--merged", str(tmp_path / "new"), "--dtype", "int8"]
    with pytest.raises(SettingsError, match=r"--dtype int8: wanted float32"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    unfinished = begin_tiny_run(tmp_path / "unfinished", keepers, tiny_folder())
    with pytest.raises(RunError, match=r"has no result yet"):
        pair_of(unfinished.folder)
    with pytest.raises(RunError, match=r"is not the one that the run began with"):
        Merged.of(pair_of(finished.folder, base=str(tiny_folder("qwen2"))))
    whole = Merged.of(pair_of(finished.folder))
    monkeypatch.setattr(pairs.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with (
        pytest.raises(ExportError, match=r"needs 0\.0 GB .* free some disk space"),
        pairs.written_whole(tmp_path / "full") as partial,
    ):
        whole.save(partial)
    assert {path.name for path in tmp_path.iterdir()} == {"unfinished"}


def test_a_changed_adapter_is_not_exported(finished: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    for each in (copy / "adapters").iterdir():
        shutil.rmtree(each)
    if finished.report()["result"]["adapter"]:
        with pytest.raises(DamagedError, match=r"restore the run's folder"):
            pair_of(copy)
    else:
        assert pair_of(copy).adapter is None
