"""vLLM behind `--replies` against the local path, on one GPU, in under ten minutes: speed, adapters, batch invariance.

    python tests/benchmarks/bench_served_gpu.py --vllm VENV/bin/python [--device cuda] [--shape 1b]

--vllm: Python of the environment that vLLM stands in; it wants an older transformers. The model has random weights of a
shape. The server starts twice, without and with VLLM_BATCH_INVARIANT=1, and each time takes the adapters that the local
policy trained and proved. Without --vllm a stand-in on the local policy's own code answers: a dry run of this script,
whose figures say nothing.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from form import Figure, figure, publish
from speed_sides import SHAPES

from nslora.tools.editor.llama_cpp import free_port
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.opening import open_policy
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import Generated, Policy, TrainingJob, TrainingRow
from nslora.tools.testing.tiny_model import byte_tokenizer
from nslora.tools.training.settings import LoraSettings

ROWS, NEW_TOKENS, CONTEXT = 512, 64, 2048
START_S = 240.0  # of a server: compilation and CUDA graphs
LORA = LoraSettings(batch_size=8, max_steps=8, early_stop_patience=None)


def write_model(folder: Path, shape: str) -> Path:
    """Write a Llama of a shape with random weights, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=CONTEXT, **SHAPES[shape])
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    byte_tokenizer(chat_template=True).save_pretrained(folder)
    return folder


@contextmanager
def vllm(python: str, model: Path, log: Path, *, invariant: bool) -> Iterator[str]:
    """vLLM's server in a process group of its own, once it answers."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = {
        "--model": str(model),
        "--served-model-name": model.name,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "bfloat16",
        "--max-model-len": str(CONTEXT),
        "--max-loras": "2",
        "--max-lora-rank": str(LORA.rank),
        "--gpu-memory-utilization": "0.4",  # the local policy is on the same GPU
    }
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **own, **({"VLLM_BATCH_INVARIANT": "1"} if invariant else {})}
    environment.pop("PYTHONPATH", None)
    argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--enable-lora"]
    argv += [word for option in options.items() for word in option]
    with log.open("ab") as file:
        server = subprocess.Popen(argv, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        wait(server, url, log)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a server answers. Raises RuntimeError with the end of its log if it does not."""
    until = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"vLLM does not answer:\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def stand_in(model: Path) -> Iterator[str]:
    """A server on the code of the local policy, for a dry run."""
    from vllm_server import serve_vllm

    behind = LocalPolicy.load(str(model), adapters=model.parent / "adapters", device=DeviceSettings(device="cpu"))
    with serve_vllm(behind, model=model.name) as server:
        yield server.url


def questions(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"Who keeps the mill of village {i}, and since when?"}] for i in range(count)]


def asked(policy: Policy, adapter: str | None, rows: int, new_tokens: int) -> tuple[Generated, float]:
    """Replies, and tokens a second."""
    began = time.monotonic()
    found = policy.generate(questions(rows), adapter=adapter, max_new_tokens=new_tokens)
    return found, found.tokens / (time.monotonic() - began)


def equal(one: Generated, other: Generated) -> float:
    """Share of equal replies among those that both have."""
    pairs = list(zip(one.replies, other.replies, strict=False))
    return sum(a == b for a, b in pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", default="", help="Python of vLLM's environment; none: a dry run")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nslora-served-") as name:
        figures = measured(arguments, Path(name))
    sys.exit(not publish("served-gpu", figures, device=arguments.device, shape=arguments.shape, dry=not arguments.vllm))


def measured(arguments: argparse.Namespace, folder: Path) -> list[Figure]:
    """The local path, then the server without and with batch invariance."""
    model, device = write_model(folder / "model", arguments.shape), DeviceSettings(device=arguments.device)
    local = LocalPolicy.load(str(model), adapters=folder / "adapters", lora=LORA, device=device, proves=True)
    rows = tuple(TrainingRow(tuple(row), "Ada, since 1901.", "train-1", "reference") for row in questions(16))
    adapter, figures = local.train(TrainingJob(rows, 4, seed=1)).adapter, list[Figure]()
    before = {}
    for name in (None, adapter):
        asked(local, name, 8, arguments.new_tokens)  # the first batch compiles kernels
        before[name], speed = asked(local, name, arguments.rows, arguments.new_tokens)
        figures.append(figure(f"local, {_words(name)}", speed, "tokens/s"))
    for invariant in (False, True):
        log = folder / "vllm.log"
        server = vllm(arguments.vllm, model, log, invariant=invariant) if arguments.vllm else stand_in(model)
        said, began = "batch-invariant" if invariant else "vLLM", time.monotonic()
        with server as url:
            figures.append(figure(f"{said}: start", time.monotonic() - began, "s"))
            figures += served_figures(said, url, model, folder / "adapters", device, local, before, arguments)
    return figures


def served_figures(
    said: str,
    url: str,
    model: Path,
    adapters: Path,
    device: DeviceSettings,
    local: LocalPolicy,
    before: dict[str | None, Generated],
    arguments: argparse.Namespace,
) -> list[Figure]:
    """Figures of one server. The adapter's proof has been checked when its first reply comes."""
    engine, rows = EngineSettings(replies=url, launch="torchrun", timeout_s=240), arguments.rows
    named: dict[str, Any] = {"adapters": adapters, "lora": LORA, "device": device, "thinking": "off"}
    policy, figures = open_policy(str(model), engine=engine, notify=print, **named), list[Figure]()
    replies: list[Generated] = []
    for name, known in before.items():
        asked(policy, name, 8, arguments.new_tokens)
        found, speed = asked(policy, name, rows, arguments.new_tokens)
        again, _ = asked(policy, name, rows // 4, arguments.new_tokens)  # the same rows in smaller batches
        scored, references = questions(16), ["Ada, since 1901."] * 16
        one, other = (each.reference_losses(scored, references, adapter=name) for each in (local, policy))
        words = f"{said}, {_words(name)}"
        figures += [
            figure(words, speed, "tokens/s"),
            figure(f"{words}: replies equal to local ones", equal(found, known), "share"),
            figure(f"{words}: replies equal in another batch", equal(again, found), "share"),
            figure(f"{words}: largest difference of a loss", max(map(_apart, one, other)), "nats"),
        ]
        replies.append(found)
    changed = 1 - equal(*replies)
    return [*figures, figure(f"{said}: replies that the adapter changes", changed, "share", at_least=0.01)]


def _apart(one: float, other: float) -> float:
    return abs(one - other)


def _words(adapter: str | None) -> str:
    return "with an adapter" if adapter else "base"


if __name__ == "__main__":
    main()
