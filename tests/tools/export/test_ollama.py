"""Ollama's template writes what the base's chat template writes, or is refused."""

from pathlib import Path

import pytest
import trl

from nslora.tools.errors import ExportError
from nslora.tools.export.ollama import modelfile, turns_of
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.testing.tiny_model import byte_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"


def chat_of(name: str | None) -> ChatFormat:
    tokenizer = byte_tokenizer(chat_template=True)
    tokenizer.bos_token = "<s>"
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8") if name else None
    return ChatFormat(tokenizer)


def test_the_turns_of_common_templates_are_found() -> None:
    """`turns_of` compares its own writing with the template's; these are the three shapes that GGUF knows."""
    chatml, gemma = turns_of(chat_of("qwen3")), turns_of(chat_of("gemma3"))
    assert chatml.before["user"] == "<|im_start|>user\n"
    assert gemma.folds
    assert turns_of(chat_of("llama3_2")).opening == ""
    assert turns_of(chat_of(None)).before["user"] == "Question: "
    odd = chat_of("qwen3")
    odd.tokenizer.chat_template = "{% for turn in messages %}{{ loop.index }}: {{ turn['content'] }}\n{% endfor %}"
    with pytest.raises(ExportError, match=r"Ollama's templates cannot follow: export --gguf"):
        turns_of(ChatFormat(odd.tokenizer))


def test_a_modelfile_holds_the_whole_prompt() -> None:
    chat, prompt = chat_of("gemma"), Prompt("Be brief.", "Q: {question}?", (Demonstration("Who", "Ada\nBrandt"),))
    written = modelfile(chat, prompt, "pair.gguf")
    assert written.startswith("FROM ./pair.gguf\n")
    assert 'SYSTEM """Be brief."""\nMESSAGE user """Q: Who?"""\nMESSAGE assistant """Ada\nBrandt"""\n' in written
    assert "{{ if $last }}Q: {{ end }}{{ .Content }}{{ if $last }}?{{ end }}<end_of_turn>" in written
    assert "PARAMETER temperature 0\n" in written
    with pytest.raises(ExportError, match=r"which a Modelfile cannot"):
        modelfile(chat, Prompt('Say """.'), "pair.gguf")
    assert '{{ "Use {{ x }}: " }}' in modelfile(chat, Prompt("", "Use {{ x }}: {question}"), "pair.gguf")
