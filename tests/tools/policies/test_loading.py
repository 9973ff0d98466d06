"""Models that cannot be a policy, or need a package, said before anything is written; quantised bases."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEVICE

from nslora.graph.runs.run import Run
from nslora.tools.errors import ModelError
from nslora.tools.inference.flops import rates_of
from nslora.tools.policies.loading import missing_package
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.tasks.task import Task
from nslora.tools.testing.tiny_model import tiny_model
from nslora.tools.training.lora_targets import lora_targets
from nslora.tools.training.settings import LoraSettings

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, r"\(bert\) is an encoder, but a policy"),
    "encoder of another family": ({"model_type": "xlm-roberta"}, r"is an encoder, but a policy continues text"),
    "encoder-decoder": ({"model_type": "t5"}, r"\(t5\) is an encoder-decoder, but a policy continues text"),
    "4 bits": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "pip install bitsandb"),
    "8 bits": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "pip install bitsandb"),
    "gptq": ({"quantization_config": GPTQ}, "the package (optimum|gptqmodel): pip install (optimum|gptqmodel)"),
    "awq": (
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        "the package gptqmodel: pip install gptqmodel",
    ),
    "compressed": ({"quantization_config": {"quant_method": "compressed-tensors"}}, "pip install compressed-tensors"),
    "own code": ({"model_type": "mine", "auto_map": {"AutoConfig": "c.Mine"}}, "runs code of its own"),
    "unknown": ({"model_type": "mine"}, "cannot be loaded from .*mine"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_model_that_cannot_be_a_policy_is_refused_and_nothing_is_written(
    what: str,
    tiny_folder: Callable[..., Path],
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for bits in (4, 8):
        module = f"transformers.quantizers.quantizer_bnb_{bits}bit"
        monkeypatch.setattr(f"{module}.is_bitsandbytes_available", lambda *_: False)
    changes, said = UNFIT[what]
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    if "model_type" in changes:
        config = {}
    (model / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=said) as caught:
        Run.create(tmp_path / "run", task=task, model=str(model))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_needs_a_package_names_it(
    tiny_folder: Callable[..., Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError(
            "\nLlamaTokenizer requires the SentencePiece library but it was not found in your environment."
        )

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(ModelError, match="needs the package sentencepiece: pip install sentencepiece"):
        Run.create(tmp_path / "run", task=task, model=str(tiny_folder()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ModuleNotFoundError("No module named 'google.protobuf'", name="google.protobuf"), "protobuf"),
        (ModuleNotFoundError("No module named 'fla'", name="fla.ops"), "fla"),
        (ImportError("`tiktoken` is required to read a file. Install it with `pip install tiktoken`."), "tiktoken"),
        (ImportError("FlashAttention2 ... the package flash_attn seems to be not installed."), "flash-attn"),
        (ImportError("Loading a GPTQ quantized model requires optimum (`pip install optimum`)"), "optimum"),
        (ImportError("requires bitsandbytes: `pip install -U bitsandbytes>=0.46.1`"), "bitsandbytes"),
        (ValueError("The checkpoint has the wrong shape"), None),
        (OSError("no file named pytorch_model.bin"), None),
    ],
)  # fmt: skip
def test_the_missing_package_is_read_from_what_transformers_says(error: Exception, package: str | None) -> None:
    assert missing_package(error) == package


def test_all_linear_is_the_default_under_pefts_name() -> None:
    for value in ("all-linear", ["all-linear"], None):
        assert LoraSettings(targets=value).targets is None  # type: ignore[arg-type]
    assert LoraSettings(targets="q_proj").targets == ("q_proj",)  # type: ignore[arg-type]


class Packed(torch.nn.Module):
    """A linear layer as gptqmodel writes GPTQ and AWQ: its weight is a packed buffer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("qweight", torch.zeros(inputs // 8, outputs, dtype=torch.int32))


def test_packed_layers_get_lora_and_are_counted_as_the_matrices_that_they_hold() -> None:
    model = tiny_model("llama", 2, 32, 64)
    wanted, rates = lora_targets(model, LoraSettings(), on_cpu=False), rates_of(model, 2)
    for block in model.model.layers:
        for parent, name in [(block.mlp, each) for each in ("gate_proj", "up_proj", "down_proj")]:
            plain = getattr(parent, name)
            setattr(parent, name, Packed(plain.in_features, plain.out_features))
    assert lora_targets(model, LoraSettings(), on_cpu=False) == wanted
    assert rates_of(model, 2) == rates


@pytest.mark.engines
@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_quantised_by_bitsandbytes_answers_and_trains(
    bits: int, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    folder = shutil.copytree(tiny_folder(), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(folder)
    lora = LoraSettings(epochs=3, batch_size=4, learning_rate=1e-2)
    policy = LocalPolicy.load(str(folder), adapters=tmp_path / "adapters", lora=lora, device=DEVICE)
    assert policy.base.is_quantized
    dialogues = [[{"role": "user", "content": f"Question {i}?"}] for i in range(4)]
    rows = tuple(TrainingRow(tuple(each), "Ada", str(i), "reference") for i, each in enumerate(dialogues))
    result = policy.train(TrainingJob(rows, 3, seed=1))
    assert result.epoch_losses[-1] < result.epoch_losses[0]
    assert policy.train(TrainingJob(rows, 3, seed=1)).adapter == result.adapter
    before, after = (sum(policy.reference_losses(dialogues, ["Ada"] * 4, adapter=a)) for a in (None, result.adapter))
    assert after < before
    assert len(policy.generate(dialogues, adapter=result.adapter, max_new_tokens=4).replies) == 4
    plain = LocalPolicy.load(str(tiny_folder()), adapters=tmp_path / "adapters", lora=lora, device=DEVICE)
    assert policy.describe()["forward_flop_per_token"] == plain.describe()["forward_flop_per_token"]
