"""Replies from vLLM itself, on a CPU, with the embedded model: those of the local policy."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from vllm_server import serve_vllm

from nslora.tools.editor.llama_cpp import free_port
from nslora.tools.inference.weights import convert_embedded, embedded_gguf
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.opening import open_policy
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import Policy, TrainingJob, TrainingRow
from nslora.tools.tasks.task import load_task
from nslora.tools.training.settings import LoraSettings

pytestmark = pytest.mark.engines
START_S, NEEDED_GB = 900.0, 6.0  # longest start at a load of 14; four processes and a KV cache
MODEL, DEVICE = "SmolLM2-135M-Instruct", DeviceSettings(device="cpu", dtype="float32", threads=1)
LORA = LoraSettings(max_steps=4, learning_rate=2e-3)
# Without lm_head: its losses under an adapter end vLLM 0.32 on a CPU.
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Server:
    """vLLM as a process of its own, on one port through all its lives."""

    def __init__(self, python: Path, log: Path) -> None:
        self.python, self.log, self.port = python, log, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        model = [str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(convert_embedded())]
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", MODEL]
        sizes = ["--dtype", "float32", "--max-model-len", "2048", "--block-size", "32", "--max-lora-rank", "8"]
        lora = ["--enable-lora", "--max-loras", "2", "--max-cpu-loras", "4", "--lora-target-modules", *MODULES]
        own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*model, *place, *sizes, *lora], env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(1)
        raise AssertionError(f"no answer within {START_S:.0f} s")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    python = Path(os.environ.get("NSLORA_VLLM", Path(sys.prefix) / "vllm")) / "bin" / "python"
    if not python.exists():
        pytest.skip("vllm-cpu is not installed: make test-engines installs it")
    if embedded_gguf() is None:
        pytest.skip("the embedded weights are not installed")
    if psutil.virtual_memory().available < NEEDED_GB * 1e9:
        pytest.skip(f"vLLM needs {NEEDED_GB:.0f} GB of free memory")
    started = Server(python, tmp_path / "vllm.log")
    try:
        yield started
    finally:
        started.kill()


def test_vllm_replies_as_the_local_policy_and_may_die_in_between(server: Server, tmp_path: Path) -> None:
    task, store, said = load_task("handbook"), tmp_path / "adapters", list[str]()
    rows = task.validation[:6]
    dialogues, references = [task.prompt.dialogue(row) for row in rows], [row.reference or "" for row in rows]
    local = LocalPolicy.load(MODEL, adapters=store, lora=LORA, device=DEVICE, proves=True)
    material = (TrainingRow(tuple(task.prompt.dialogue(row)), row.reference or "", row.id, "reference") for row in rows)
    adapter = local.train(TrainingJob(tuple(material), 4, seed=1)).adapter
    wanted = {
        (name, tokens): local.generate(dialogues, adapter=name, max_new_tokens=tokens)
        for name in (None, adapter)
        for tokens in (12, 24)
    }

    def connected(*urls: str) -> Policy:
        engine = EngineSettings(replies=urls, timeout_s=START_S)
        named: dict[str, Any] = {"adapters": store, "lora": LORA, "device": DEVICE, "thinking": "off"}
        return open_policy(MODEL, engine=engine, notify=said.append, **named)

    server.wait()
    served = connected(server.url)
    assert served.fingerprint.startswith(f"{local.facts.weights}@vllm-0.")
    for name in (None, adapter):
        assert served.generate(dialogues, adapter=name, max_new_tokens=12) == wanted[name, 12]
        assert served.reference_losses(dialogues, references, adapter=name) == pytest.approx(
            local.reference_losses(dialogues, references, adapter=name), abs=1e-4
        )
    assert wanted[None, 12].replies != wanted[adapter, 12].replies

    def die(done: int, total: int) -> None:
        if done == 1:
            server.kill()
            threading.Thread(target=server.start, daemon=True).start()

    assert served.generate(dialogues, adapter=adapter, max_new_tokens=24, on_progress=die) == wanted[adapter, 24]
    assert [line.split()[1:3] for line in said] == [["left", "out:"], ["back:", server.url]]
    with serve_vllm(local, version=served.fingerprint.partition("@vllm-")[2]) as fake:
        both = connected(server.url, fake.url)
        assert both.generate(dialogues, adapter=adapter, max_new_tokens=12) == wanted[adapter, 12]
        prompts = set(map(tuple, local.facts.prompts(dialogues, 12)))
        assert 0 < len(prompts & {ids for ids, _ in fake.answered}) < len(rows)
