"""The GGUF file holds the merged weights, the tokenizer and the template, as an independent reader finds them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nslora.tools.errors import ExportError, SettingsError
from nslora.tools.export.gguf_file import gguf_type_named, refuse_shape, write_gguf
from nslora.tools.export.merged import Merged
from nslora.tools.export.pair import Pair
from nslora.tools.testing.tiny_model import byte_tokenizer


@pytest.mark.parametrize(("family", "kind", "close"), [("llama", "f16", 2e-3), ("qwen2", "q8_0", 5e-2)])
def test_transformers_reads_back_what_was_merged(
    known_pair: Callable[..., Any], tmp_path: Path, family: str, kind: Any, close: float
) -> None:
    import torch
    from gguf import GGUFReader, TokenType
    from transformers import AutoModelForCausalLM

    whole = Merged.of(known_pair(family).pair)
    write_gguf(whole, tmp_path / "pair.gguf", kind)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="pair.gguf")
    for name, weight in whole.model.state_dict().items():
        assert torch.allclose(model.state_dict()[name], weight, atol=close * float(weight.abs().max())), name
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "pair.gguf").fields.items()}
    ids = range(len(whole.tokenizer))
    assert fields["tokenizer.ggml.tokens"] == whole.tokenizer.convert_ids_to_tokens(ids)
    control = [i for i in ids if fields["tokenizer.ggml.token_type"][i] == TokenType.CONTROL]
    assert control == sorted(whole.tokenizer.added_tokens_decoder)
    assert fields["tokenizer.chat_template"] == whole.tokenizer.chat_template
    assert fields["tokenizer.ggml.eot_token_id"] == whole.chat.end_of_turn
    assert fields["general.sampling.temp"] == 0.0


def test_gemma_3_keeps_its_windows_and_norms(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    tokenizer = byte_tokenizer(chat_template=True)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=7,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=64,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    whole = Merged.of(Pair("gemma", str(tmp_path / "gemma"), "", None, _prompt()))
    write_gguf(whole, tmp_path / "pair.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="pair.gguf")
    assert read.config.layer_types == config.layer_types
    assert read.config.sliding_window == 64
    for name, weight in whole.model.state_dict().items():
        assert torch.allclose(read.state_dict()[name], weight, atol=2e-3 * float(weight.abs().max())), name
    config.query_pre_attn_scalar = 8
    whole.model.config.query_pre_attn_scalar = 8
    with pytest.raises(ExportError, match=r"another scale of attention.*export --merged"):
        write_gguf(whole, tmp_path / "odd.gguf")
    assert not (tmp_path / "odd.gguf").exists()


def test_other_shapes_types_and_tokenizers_are_refused(
    tiny_folder: Callable[..., Path],
    known_pair: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Merged.of(Pair("gpt2", str(tiny_folder("gpt2")), "", None, _prompt()))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        with pytest.raises(ExportError, match=r"not installed: pip install gguf"):
            refuse_shape(whole.model.config)
    with pytest.raises(ExportError, match=r"type gpt2 is not written to GGUF here.*convert_hf_to_gguf"):
        write_gguf(whole, tmp_path / "pair.gguf")
    with pytest.raises(SettingsError, match=r"--gguf-type q4_k: wanted f16 or q8_0"):
        gguf_type_named("q4_k")
    other = Merged.of(known_pair().pair)
    core = other.tokenizer.backend_tokenizer
    from tokenizers import normalizers

    core.normalizer = normalizers.Lowercase()
    with pytest.raises(ExportError, match=r"llama.cpp's name of this tokenizer's split is not known"):
        write_gguf(other, tmp_path / "pair.gguf")


def _prompt() -> Any:
    from nslora.tools.prompt import Prompt

    return Prompt("Be brief.")
