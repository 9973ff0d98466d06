"""Parts of bench_scale.py with whole runs and real models: bytes and CPU of a round, served, torchrun, a sweep."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chaos_proxy import between
from form import Figure, figure

from nslora.graph.sweep.sweep import sweep
from nslora.tools.errors import StoppedError
from nslora.tools.inference.generation import generate_ids
from nslora.tools.inference.weights import EMBEDDED_NAME, resolve_model
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.launched import JOB, LaunchedTraining
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.opening import open_policy
from nslora.tools.policies.probe_adapter import write_probe_adapter
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.tasks.task import load_task
from nslora.tools.testing.tiny_model import write_tiny_model
from nslora.tools.testing.tiny_task import write_tiny_task
from nslora.tools.training.adapters import WEIGHTS, AdapterStore
from nslora.tools.training.settings import LoraSettings

DEVICE = DeviceSettings(device="cpu", dtype="float32", threads=1)
ROUNDS, SLOTS = 3, 64
ROWS, NEW_TOKENS, REPEATS = 16, 16, 3  # of the served path against the local one
CELLS = 4
LORA = LoraSettings(batch_size=8, fast=False, early_stop_patience=None)


@contextmanager
def program(*arguments: str) -> Iterator[str]:
    """Start a program of the benchmarks; yields the first line that it prints."""
    started = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield started.stdout.readline().strip() if started.stdout else ""
    finally:
        started.kill()
        started.wait()


def embedded_facts(lora: LoraSettings = LORA) -> ModelFacts:
    return ModelFacts.read(EMBEDDED_NAME, lora=lora, thinking="off", on_cpu=True)


def training_rows(count: int) -> tuple[TrainingRow, ...]:
    """Rows of the embedded task in its start prompt."""
    task = load_task("handbook")
    rows = (task.train * (1 + count // len(task.train)))[:count]
    return tuple(TrainingRow(tuple(task.prompt.dialogue(row)), row.target or "", row.id, "reference") for row in rows)


def a_round(folder: Path) -> list[Figure]:
    """Bytes and CPU of a round: edits of the embedded task, with stand-in servers."""
    own, model = Path(__file__), resolve_model(EMBEDDED_NAME).location
    bench = str(own.with_name("bench_scale.py"))
    with program(bench, "--serve", str(model), "--slots", str(SLOTS)) as url, between(url) as proxy:
        argv = [sys.executable, str(own), "--run", proxy.url, str(folder / "run")]
        environment = {**os.environ, "NSLORA_CACHE": str(cache_with_model(folder)), "NSLORA_PAGE": "0"}
        done = subprocess.run(argv, check=True, capture_output=True, text=True, env=environment)
        told = json.loads(done.stdout.splitlines()[-1])
        asked: Counter[str] = proxy.asked
    answers = (asked["reply"] + asked["loss"]) / told["rounds"]
    facts, store = embedded_facts(), AdapterStore(folder / "adapters")
    adapter = write_probe_adapter(facts, LoraSettings(), store, folder / "probe")
    job = TrainingJob(training_rows(30), 1, seed=1, progress=folder / "job")
    with suppress(StoppedError):  # the program does nothing
        LaunchedTraining("true", facts, LORA, store).train(job)
    return [
        figure("between a run and its servers, for a round", proxy.moved_bytes / 1e3 / told["rounds"], "kB"),
        figure("replies and losses of a round", answers),
        figure("CPU of the asking process for a round, with its replies", told["cpu_s"], "s"),
        figure("CPU of the asking process for a round, without its replies", told["beside_s"], "s"),
        figure(
            "an adapter of the embedded model, to each server",
            (store.folder / adapter / WEIGHTS).stat().st_size / 1e6,
            "MB",
        ),
        figure("a training job of 30 rows, to each process", (folder / "job" / JOB).stat().st_size / 1e3, "kB"),
    ]


def cache_with_model(folder: Path) -> Path:
    """A cache folder that has the converted embedded model and no reply."""
    models = folder / "cache" / "models"
    models.mkdir(parents=True)
    (models / EMBEDDED_NAME).symlink_to(resolve_model(EMBEDDED_NAME).location)
    return models.parent


def work(url: str, folder: Path) -> None:
    """A run of edits; prints the CPU of its rounds after the first, and that outside of calls of the servers.

    The first evaluation is left out: it imports what the others use.
    """
    from nslora.graph.runs.run import Run

    engine = {"replies": url, "launch": "torchrun"}
    settings: dict[str, Any] = {"engine": engine, "strategy": "textgrad", "max_rounds": ROUNDS}
    run = Run.create(folder, task=load_task("handbook"), editor="rules", device=DEVICE.model_dump(), **settings)
    policy, asking = run.workspace.policy, [0.0]
    before = {name: getattr(policy, name) for name in ("generate", "reference_losses")}

    def timed(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return before[name](*args, **kwargs)
            finally:
                asking[0] += time.process_time() - began

        return call

    for name in before:
        setattr(policy, name, timed(name))
    marks = []
    for mode, part in run.stream():
        if mode == "updates" and "monitor" in part:
            marks.append((time.process_time(), asking[0]))
    (began, asked), (ended, asked_then), later = marks[1], marks[-1], len(marks) - 2
    spent = ended - began
    beside = spent - (asked_then - asked)
    print(json.dumps({"cpu_s": spent / later, "beside_s": beside / later, "rounds": len(marks)}))


def served_against_local(folder: Path) -> list[Figure]:
    """The same replies of the embedded model, one row at a time: in this process, and from one that serves it."""
    location = str(resolve_model(EMBEDDED_NAME).location)
    local = LocalPolicy.load(EMBEDDED_NAME, adapters=folder / "adapters", device=DEVICE)
    dialogues = [list(row.dialogue) for row in training_rows(ROWS)]
    rows = local.facts.prompts(dialogues, NEW_TOKENS)
    plain: dict[str, Any] = {"batch_size": 1, "stop_ids": local.format.stop_ids, "pad_id": local.format.pad_id}
    with program(str(Path(__file__)), "--serve-model", location) as url:
        policy = open_policy(
            EMBEDDED_NAME,
            engine=EngineSettings(replies=url, launch="torchrun"),
            adapters=folder / "adapters",
            lora=LoraSettings(),
            device=DEVICE,
            thinking="off",
            notify=print,
        )
        ratios = []
        for _ in range(REPEATS):
            began = time.monotonic()
            with local.using(None) as model:
                ids = generate_ids(
                    model, rows, max_new_tokens=NEW_TOKENS, on_progress=lambda *_: None, shared=0, pads=True, **plain
                )
            middle = time.monotonic()
            found = policy.generate(dialogues, adapter=None, max_new_tokens=NEW_TOKENS)
            ratios.append((time.monotonic() - middle) / (middle - began))
            if found.replies != tuple(local.format.decode(each) for each in ids):
                raise RuntimeError("the server's replies are other ones than those of this process")
    return [figure("served path against the local one, at equal work", statistics.median(ratios), "times")]


def serve_model(location: str) -> None:
    """Serve a model over vLLM's routes until the process is killed; the first line that it prints is its address."""
    from vllm_server import serve_vllm

    policy = LocalPolicy.load(location, adapters=Path(location).parent / "no-adapters", device=DEVICE)
    with serve_vllm(policy) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(60)


def torchrun(folder: Path) -> list[Figure]:
    """The same job of the embedded model by one process and by two, of one thread each."""
    facts, job = embedded_facts(), TrainingJob(training_rows(32), 2, seed=1)
    inside, whole = [], []
    for processes in (1, 2):
        store = AdapterStore(folder / f"adapters-{processes}")
        command = f"torchrun --standalone --nproc_per_node {processes}"
        began = time.monotonic()
        result = LaunchedTraining(command, facts, LORA, store, processes, DEVICE).train(job)
        whole.append(time.monotonic() - began)
        inside.append(result.wall_s)
    return [
        figure("torchrun x 2 against x 1, training alone", inside[0] / inside[1], "times"),
        figure("torchrun x 2 against x 1, with the programs' start", whole[0] / whole[1], "times"),
        figure("start of a training program", whole[0] - inside[0], "s"),
    ]


def sweep_on_two_cores(folder: Path) -> list[Figure]:
    """A sweep of runs of a tiny model, one at a time and two at a time."""
    task, model = write_tiny_task(folder / "task"), write_tiny_model(folder / "model")
    cells = {
        "tasks": [str(task)],
        "models": [str(model)],
        "strategies": ["textgrad -> lora"],
        "seeds": list(range(CELLS)),
        "settings": {
            "max_rounds": 4,
            "device": {"threads": 1, "device": "cpu"},
            "lora": {"epochs": 3, "batch_size": 4},
        },
    }
    seconds = []
    for jobs in (1, 2):
        began = time.monotonic()
        found = sweep(cells, folder=folder / str(jobs), jobs=jobs, share=False)
        if found.failed or found.left:
            raise RuntimeError(f"cells failed: {found.failed}")
        seconds.append(time.monotonic() - began)
    return [figure("a sweep of four runs, two at once against one", seconds[0] / seconds[1], "times")]


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        serve_model(sys.argv[2])
