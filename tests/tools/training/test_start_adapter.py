"""Adapters that a run starts from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import DEVICE
from safetensors.torch import load_file, save_file

from nslora.graph.runs.run import Run
from nslora.tools.errors import ModelError, NsloraError, RunError, SettingsError
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.training.adapters import CONFIG, WEIGHTS

Begin = Callable[..., Run]
QUICK = {"epochs": 1, "batch_size": 4, "learning_rate": 3e-2}  # rank and place are left to the adapter


@pytest.fixture(scope="module")
def adapter(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder that was trained elsewhere: rank 3 on two modules of every block."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder())
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "up_proj"]))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder := tmp_path_factory.mktemp("elsewhere"))
    return folder


def test_a_run_starts_from_an_adapter_trains_it_on_and_leaves_a_whole_one(
    begin: Begin, adapter: Path, tmp_path: Path
) -> None:
    given = {file.name: file.read_bytes() for file in adapter.iterdir()}
    run = begin(adapter=str(adapter), lora=QUICK, strategy="lora", max_rounds=1)
    assert (run.workspace.settings.lora.rank, run.workspace.settings.lora.alpha) == (3, 7.0)
    assert run.workspace.settings.lora.targets == ("q_proj", "up_proj")
    assert run.workspace.settings.lora.top_blocks == 4
    result = run.adapt()
    start = result.report["start"]["adapter"]
    assert load_file(run.workspace.adapters.path(start) / WEIGHTS).keys() == load_file(adapter / WEIGHTS).keys()
    assert (run.workspace.adapters.path(start) / WEIGHTS).read_bytes() == given[WEIGHTS]
    (made,) = [each for each in result.report["rounds"] if each["candidate"]]
    trained = run.workspace.adapters.path(made["candidate"]["adapter"])
    old, new = load_file(adapter / WEIGHTS), load_file(trained / WEIGHTS)
    assert old.keys() == new.keys()
    assert all((old[name] != new[name]).any() for name in old)
    assert result.adapter is not None  # the start's or the new one, but never the bare model's nothing
    assert (result.adapter / WEIGHTS).is_file()
    assert {file.name: file.read_bytes() for file in adapter.iterdir()} == given
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    assert Run.open(run.folder).replay(tmp_path / "replay").same
    with pytest.raises(RunError, match="begin a new run from another one"):
        run.fork(tmp_path / "fork", at=0, settings={"adapter": None})


def test_the_start_is_measured_with_the_adapter(begin: Begin, adapter: Path, tiny_folder: Callable[..., Path]) -> None:
    run = begin(adapter=str(adapter), lora=QUICK, max_rounds=0)
    policy = run.workspace.policy
    assert isinstance(policy, LocalPolicy)
    prompts = [run.workspace.task.prompt.messages(row.question) for row in run.workspace.task.test]
    start = run.first_state()["start"]["adapter"]
    losses = [policy.reference_losses(prompts, ["Ada"] * len(prompts), adapter=each) for each in (None, start)]
    assert losses[0] != losses[1]
    assert run.adapt().report["start"]["adapter"] == start


def changed(adapter: Path, folder: Path, what: str) -> Path:
    """A copy of the adapter with something that cannot be used."""
    copy = Path(shutil.copytree(adapter, folder / what.replace(" ", "-")))
    config = json.loads((copy / CONFIG).read_text())
    tensors = load_file(copy / WEIGHTS)
    if what == "another kind":
        config["peft_type"] = "IA3"
    elif what == "whole modules":
        config["modules_to_save"] = ["lm_head"]
    elif what == "a pickle":
        (copy / WEIGHTS).rename(copy / "adapter_model.bin")
    elif what == "damaged":
        (copy / WEIGHTS).write_bytes(b"half a file")
    elif what == "embeddings":
        tensors = {"base_model.model.model.embed_tokens.lora_embedding_A": next(iter(tensors.values()))}
    elif what == "another base":
        tensors = {name: tensor.repeat(2, 2) for name, tensor in tensors.items()}
        config["base_model_name_or_path"] = "someone/wide-7b"
    elif what == "no config":
        (copy / CONFIG).unlink()
    if what in ("embeddings", "another base"):
        save_file(tensors, copy / WEIGHTS)
    if what != "no config":
        (copy / CONFIG).write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("another kind", "is IA3, but only LORA"),
        ("whole modules", "has modules_to_save, which is not trained here"),
        ("a pickle", "save it again with safe_serialization=True"),
        ("damaged", "is damaged"),
        ("embeddings", "holds .*embed_tokens.*, but only LoRA of linear layers"),
        ("another base", "was trained on someone/wide-7b and does not fit .* Name its own base"),
        ("no config", "is no PEFT adapter"),
    ],
)
def test_an_adapter_that_cannot_be_continued_is_refused_and_nothing_is_written(
    begin: Begin, adapter: Path, tmp_path: Path, what: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        begin(adapter=str(changed(adapter, tmp_path, what)), lora=QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [("rank", 16), ("alpha", 16.0), ("targets", ["q_proj"]), ("top_blocks", 2)])
def test_a_shape_that_the_adapter_does_not_have_is_refused(begin: Begin, adapter: Path, name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"lora\.{name} is .* which training cannot change: leave lora\.{name} out"):
        begin(adapter=str(adapter), lora={**QUICK, name: value})


def test_an_adapter_is_no_model_and_a_run_is_not_overwritten_by_its_own(
    begin: Begin, adapter: Path, tiny_folder: Callable[..., Path], task: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="holds a PEFT adapter, no model"):
        Run.create(tmp_path / "a", task=task, model=str(adapter))
    run = begin(lora=QUICK)
    inside = Path(shutil.copytree(adapter, run.folder / "result" / "adapter"))
    with pytest.raises(SettingsError, match="lies in the run that is overwritten"):
        Run.create(run.folder, task=task, model=str(tiny_folder()), adapter=str(inside), overwrite=True)
    assert (run.folder / "run.json").exists()
    policy = LocalPolicy.load(str(tiny_folder()), adapters=tmp_path / "adapters", device=DEVICE)
    with pytest.raises(SettingsError, match="needs a model by its name"):
        Run.create(tmp_path / "b", task=task, model=policy, adapter=str(adapter))
    with pytest.raises(NsloraError, match="is no PEFT adapter"):
        Run.create(tmp_path / "c", task=task, model=str(tiny_folder()), adapter=str(tmp_path / "nowhere"))
