"""Shared by the speed benchmarks: the timed model, alternating sides, and memory."""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from form import Figure, figure

from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import TrainingRow
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.schema import Example
from nslora.tools.training.settings import LoraSettings

# Shapes for random weights. `tiny` is for tests of the code without the hardware.
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
SAMPLE_S = 0.005  # between two samples of the resident memory


def load(arguments: argparse.Namespace, folder: Path) -> LocalPolicy:
    """The timed policy: a named model, or random weights of a named shape in bfloat16."""
    device = DeviceSettings(device=arguments.device)
    lora = LoraSettings(early_stop_patience=None, top_blocks=arguments.top_blocks)
    if arguments.shape is None:
        return LocalPolicy.load(arguments.model, adapters=folder / "adapters", lora=lora, device=device)
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.utils import logging

    from nslora.tools.inference.weights import ModelSource
    from nslora.tools.policies.environment import silence_known_warnings
    from nslora.tools.testing.tiny_model import byte_tokenizer
    from nslora.tools.training.adapters import AdapterStore

    silence_known_warnings()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(max_position_embeddings=4096, **SHAPES[arguments.shape]), dtype=torch.bfloat16
        )
    model.config._commit_hash = "random-weights"  # avoids hashing the weights; no reply is cached here
    name = f"random-{arguments.shape}"
    return LocalPolicy(
        model,
        byte_tokenizer(chat_template=True),
        source=ModelSource(name, name),
        adapters=AdapterStore(folder / "adapters"),
        lora=lora,
        device=device,
    )


def goals_apply(arguments: argparse.Namespace) -> bool:
    """Whether goals apply: only to a real model on a CPU. Elsewhere figures are only reported."""
    return bool(arguments.device == "cpu" and arguments.shape is None)


def json_prompt(shown: Sequence[Example] = ()) -> Prompt:
    """A system prompt that asks for JSON, with these rows as demonstrations."""
    return Prompt(
        "Reply with a JSON object with the key answer.",
        demonstrations=tuple(Demonstration(row.question, in_json(row)) for row in shown),
    )


def in_json(row: Example) -> str:
    return f'{{"answer": "{row.reference}"}}'


def styled(rows: Sequence[Example], prompt: Prompt) -> tuple[TrainingRow, ...]:
    """Rows of a training job under `prompt`."""
    return tuple(TrainingRow(tuple(prompt.messages(row.question)), in_json(row), row.id, "remade") for row in rows)


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds of `work`, a GPU's queue included."""
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alternating(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each side in each repeat. Every second repeat runs the sides in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            seconds[name].append(timed(sides[name]))
            print(f"  {name}: {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def ratio(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """Median of the repeats' ratios, with the smallest and the largest of them."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    return figure(
        name, statistics.median(ratios), f"x ({ratios[0]:.2f} to {ratios[-1]:.2f})", at_least=at_least, at_most=at_most
    )


def memory_bytes(device: str) -> int:
    """Memory in use: by the process, or by torch on a GPU."""
    import psutil
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


@contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """A list that holds, after the block, the peak memory inside minus the memory before, in bytes."""
    import torch

    before, found, over = memory_bytes(device), [0], threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            found[0] = max(found[0], memory_bytes(device) - before)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield found
        found[0] = int(torch.cuda.max_memory_allocated()) - before
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
