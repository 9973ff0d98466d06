"""The embedded model, exported and served: a client that knows nothing of the prompt gets the run's own replies."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from nslora.tools.editor.llama_cpp import LlamaCppServer
from nslora.tools.export import serving
from nslora.tools.export.clients import ask_folder, ask_server
from nslora.tools.export.gguf_file import write_gguf
from nslora.tools.export.merged import Merged
from nslora.tools.export.pair import Pair
from nslora.tools.inference.weights import EMBEDDED_NAME, embedded_gguf
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.training.adapters import AdapterStore

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(embedded_gguf() is None, reason="the embedded model is not installed: nslora[embedded]"),
]
PROMPT = Prompt(
    "Reply with a JSON object.",
    "Capital of {question}?",
    (Demonstration("Peru", '{"answer": "Lima"}'), Demonstration("Kenya", '{"answer": "Nairobi"}')),
)
DIALOGUES = [
    [{"role": "user", "content": each}] for each in ("France", "Japan", "Austria", "Egypt 1911", "New Zealand")
]
LENGTH = 16


@dataclass(frozen=True)
class Real:
    pair: Pair
    merged: Merged
    replies: tuple[str, ...]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """A pair with a small random adapter, too weak to change a reply, and what the run itself replies."""
    import torch

    folder = tmp_path_factory.mktemp("real")
    policy = LocalPolicy.load(EMBEDDED_NAME, adapters=folder / "adapters")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=0.5, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    config.base_model_name_or_path = policy.name
    other = LocalPolicy.load(EMBEDDED_NAME, adapters=folder / "adapters")
    get_peft_model(other.base, config).save_pretrained(folder / "one")
    adapter = AdapterStore(folder / "adapters").take(folder / "one")
    asked = [PROMPT.messages(each[0]["content"]) for each in DIALOGUES]
    replies = policy.generate(asked, adapter=adapter, max_new_tokens=LENGTH).replies
    pair = Pair("real", EMBEDDED_NAME, policy.fingerprint, folder / "adapters" / adapter, PROMPT)
    return Real(pair, Merged.of(pair), replies)


def test_transformers_gives_the_runs_own_replies(real: Real, tmp_path: Path) -> None:
    real.merged.save(tmp_path)
    assert tuple(ask_folder(tmp_path, DIALOGUES, max_new_tokens=LENGTH)) == real.replies
    assert tuple(ask_folder(tmp_path, DIALOGUES, max_new_tokens=LENGTH, prompt=False)) != real.replies


def test_llama_cpp_gets_the_runs_prompt_and_gives_its_replies(real: Real, tmp_path: Path) -> None:
    import httpx

    pytest.importorskip("xllamacpp")
    write_gguf(real.merged, tmp_path / "real.gguf", "f16")
    server = LlamaCppServer(tmp_path / "real.gguf", context=1024)
    try:
        text = real.merged.chat.render(PROMPT.messages("Egypt 1911"))
        root = server.base_url.removesuffix("/v1")
        body = {"content": text, "add_special": True, "parse_special": True}
        tokens = httpx.post(f"{root}/tokenize", json=body, timeout=60).json()["tokens"]
        assert tokens == real.merged.chat.prompt_ids(PROMPT.messages("Egypt 1911"))
        replies = ask_server(server.base_url, DIALOGUES, max_new_tokens=LENGTH)
        assert sum(a == b for a, b in zip(replies, real.replies, strict=True)) >= len(replies) - 1  # f16 rounds
        assert ask_server(server.base_url, DIALOGUES, max_new_tokens=LENGTH, prompt=False) != replies
    finally:
        server.stop()


def test_vllm_in_float32_gives_the_runs_own_replies(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Path(os.environ.get(serving.VLLM, Path(sys.prefix) / "vllm"))
    monkeypatch.setenv(serving.VLLM, str(elsewhere))
    if serving.command_of("vllm") is None:
        pytest.skip(f"no vLLM in {elsewhere} or on the path: {serving.VLLM} names the folder of its environment")
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}.items():
        monkeypatch.setenv(name, value)
    real.merged.save(tmp_path / "merged")
    server = serving.started("vllm", tmp_path / "merged", "real")
    try:
        assert tuple(ask_server(server.base_url, DIALOGUES, max_new_tokens=LENGTH)) == real.replies
        assert tuple(ask_server(server.base_url, DIALOGUES, max_new_tokens=LENGTH, prompt=False)) != real.replies
    finally:
        server.stop()
