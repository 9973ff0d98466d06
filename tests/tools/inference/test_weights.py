"""A GGUF file as the policy: converted once, exactly, and told if it cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from nslora.tools.errors import ModelError
from nslora.tools.inference.weights import resolve_model
from nslora.tools.testing.tiny_model import CHATML, SPECIAL


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def qwen2(tiny_folder: Callable[..., Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder("qwen2"))


def write_gguf(file: Path, model: Any, tokenizer: Any, architecture: str = "qwen2") -> Path:
    """Write a tiny Qwen2 as llama.cpp's converter does, without an output head: it is tied."""
    writer, config = gguf.GGUFWriter(file, architecture), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda each: each[1])]
    tokens[255] = tokens[0] + tokens[1]  # readers want at least one merge
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHATML)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            stem, _, suffix = name.rpartition(".")
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_is_converted_once_to_the_same_weights(
    qwen2: Any, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("qwen2"))
    file = write_gguf(tmp_path / "tiny.gguf", qwen2, tokenizer)
    said: list[str] = []
    source = resolve_model(str(file), said.append)
    assert source.name == "tiny"
    assert len(said) == 2
    again = AutoModelForCausalLM.from_pretrained(source.location)
    assert again.config.tie_word_embeddings
    for name, tensor in qwen2.state_dict().items():
        assert tensor.equal(again.state_dict()[name]), name
    assert AutoTokenizer.from_pretrained(source.location).chat_template == CHATML
    assert resolve_model(str(file), said.append) == source
    assert len(said) == 2


def test_a_gguf_file_is_parsed_once(
    qwen2: Any, tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", qwen2, AutoTokenizer.from_pretrained(tiny_folder("qwen2")))
    reader, opened = gguf.GGUFReader, list[str]()

    def counted(path: str, *more: Any) -> Any:
        opened.append(path)
        return reader(path, *more)

    monkeypatch.setattr(gguf, "GGUFReader", counted)
    resolve_model(str(file))
    assert opened == [str(file)]
    assert gguf.GGUFReader is counted


def test_another_file_of_the_same_name_is_another_model(
    qwen2: Any, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("qwen2"))
    first = resolve_model(str(write_gguf(tmp_path / "tiny.gguf", qwen2, tokenizer)))
    qwen2.get_input_embeddings().weight.data += 1
    second = resolve_model(str(write_gguf(tmp_path / "tiny.gguf", qwen2, tokenizer)))
    assert first.location != second.location


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "There is no file"), (b"PK", "is no whole GGUF file"), (b"GGUF\x03\0\0\0", "is no whole GGUF file")],
)
def test_a_missing_or_damaged_file_is_told(content: bytes | None, told: str, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=told):
        resolve_model(str(file))
    assert not list(cache.glob("models/*"))


def test_an_unknown_architecture_is_told_with_the_types(
    qwen2: Any, tiny_folder: Callable[..., Path], tmp_path: Path, cache: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("qwen2"))
    file = write_gguf(tmp_path / "odd.gguf", qwen2, tokenizer, architecture="oddformer")
    with pytest.raises(ModelError, match=r"cannot read odd\.gguf \(architecture oddformer, types F32\)"):
        resolve_model(str(file))
    assert not list(cache.glob("models/*/source.json"))
