"""Growth of memory and time with adapters, rows, and rounds (rounds: a stub trains and replies)."""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from form import Figure, figure
from speed_sides import json_prompt, memory_bytes, peak_memory, styled, timed

from nslora.graph.runs.run import Run
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import Generated, OnProgress, TrainingJob, TrainingResult, no_progress
from nslora.tools.router.inputs import RouterInput
from nslora.tools.schema import Dialogue, Example
from nslora.tools.tasks.task import Task
from nslora.tools.training.adapters import CONFIG, WEIGHTS, AdapterStore

FIRST_ROWS, EPOCHS, REPLY_TOKENS = 8, 2, 4
BATCH = 8  # also of generation: few rows would not fill a larger batch
TIMES = (1, 4, 16)
ROUNDS = (1, 10, 50)
ALLOWED = 1.1  # times linear growth
MIB = 2**20
PAGES_MIB = 4.0  # noise of the allocator


def adapter_figure(arguments: argparse.Namespace, policy: LocalPolicy, rows: Sequence[Example]) -> Figure:
    """Memory with five adapters loaded, in units of the base's weights."""
    prompt = json_prompt()
    dialogues = [prompt.messages(row.question) for row in rows[:8]]
    names = [policy.train(TrainingJob(styled(rows[:8], prompt), 1, seed=seed)).adapter for seed in range(5)]
    policy.generate(dialogues, adapter=None, max_new_tokens=2)
    before = memory_bytes(arguments.device)
    for name in names:
        policy.generate(dialogues, adapter=name, max_new_tokens=2)
    grown = memory_bytes(arguments.device) - before
    base = sum(p.numel() * p.element_size() for n, p in policy.base.named_parameters() if "lora_" not in n)
    return figure("memory: base and five adapters / base", 1 + grown / base, "x", at_most=1.1)


def row_figures(arguments: argparse.Namespace, policy: LocalPolicy, rows: Sequence[Example]) -> list[Figure]:
    """Training jobs and evaluations of x1, x4 and x16 rows: seconds, and memory above the level before."""
    prompt, repeats = json_prompt(), arguments.repeats
    few = rows[:FIRST_ROWS]
    found: dict[str, dict[int, list[float]]] = {}

    def note(what: str, times: int, value: float) -> None:
        found.setdefault(what, {}).setdefault(times, []).append(value)

    policy.train(TrainingJob(styled(few, prompt), EPOCHS, seed=1))
    largest, policy.batch_size = policy.batch_size, BATCH
    for _ in range(repeats):
        for times in TIMES:
            many = [
                replace(row, id=f"{row.id}-{i}", question=f"{row.question} ({i})") for i in range(times) for row in few
            ]
            job = TrainingJob(styled(many, prompt), EPOCHS, seed=1)
            with peak_memory(arguments.device) as peak:
                note("training job, seconds", times, timed(lambda job=job: policy.train(job)))  # type: ignore[misc]
            note("training job, MiB", times, peak[0] / MIB)
            dialogues = [prompt.messages(row.question) for row in many]
            with peak_memory(arguments.device) as peak:
                note(
                    "replies, seconds",
                    times,
                    timed(
                        lambda dialogues=dialogues: policy.generate(  # type: ignore[misc]
                            dialogues, adapter=None, max_new_tokens=REPLY_TOKENS
                        )
                    ),
                )
            note("replies, MiB", times, peak[0] / MIB)
    policy.batch_size = largest
    return [
        against_linear(
            f"growth with rows x1, x4, x16: {what}",
            {times: statistics.median(values) for times, values in by_times.items()},
            TIMES,
            0.0 if "s" in what[-3:] else PAGES_MIB,
        )
        for what, by_times in found.items()
    ]


def round_figures(task: Task, repeats: int) -> list[Figure]:
    """Whole runs of 1, 10 and 50 rounds with the real graph, nodes, editor and files; the policy is a stub.

    Seconds are CPU seconds of the process, without waiting for the disk.
    """
    seconds: dict[int, list[float]] = {rounds: [] for rounds in ROUNDS}
    mib: dict[int, list[float]] = {rounds: [] for rounds in ROUNDS}
    stub_run(task, 2)
    for _ in range(repeats):
        for rounds in ROUNDS:
            with peak_memory("cpu") as peak:
                started = time.process_time()
                stub_run(task, rounds)
                seconds[rounds].append(time.process_time() - started)
            mib[rounds].append(peak[0] / MIB)
    return [
        against_linear(
            f"growth with rounds 1, 10, 50: {what}",
            {rounds: statistics.median(each) for rounds, each in values.items()},
            ROUNDS,
            slack,
        )
        for what, values, slack in (("CPU seconds", seconds, 0.0), ("MiB", mib, PAGES_MIB))
    ]


def against_linear(name: str, values: dict[int, float], at: tuple[int, int, int], slack: float) -> Figure:
    """The growth from the middle value to the last, in units of linear growth: above 1 is worse than linear.

    slack: the noise of the measured quantity.
    """
    _, middle, high = at
    shown = ", ".join(f"{values[each]:.3g}" for each in at)
    return figure(
        f"{name} {shown}", values[high] / (values[middle] + slack) / (high / middle), "x linear", at_most=ALLOWED
    )


def stub_run(task: Task, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(
            Path(folder) / "run",
            task=task,
            model=StubPolicy(Path(folder) / "run" / "adapters"),
            max_rounds=rounds,
            reuse_replies=False,
            strategy=f"{__name__}:alternate",
            editing={"patience": 10 * rounds},
        )
        run.adapt()
        done = len(json.loads((run.folder / "result" / "report.json").read_text())["rounds"])
        if done != rounds:
            raise RuntimeError(f"The stub's run ended after {done} of {rounds} rounds.")


def alternate(router_input: RouterInput) -> str:
    """A strategy: weights and prompt in turn."""
    return "lora" if router_input.round % 2 else "textgrad"


class StubPolicy:
    """Replies and trains without delay. A reply depends on the question and the adapter, and never earns a reward."""

    name, fingerprint, context_tokens = "stub", "stub-policy", 100_000

    def __init__(self, folder: Path) -> None:
        self.adapters = AdapterStore(folder)

    def describe(self) -> dict[str, Any]:
        return {"model": self.name}

    def count_tokens(self, dialogue: Dialogue) -> int:
        return sum(len(turn["content"].split()) for turn in dialogue)

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        replies = tuple(
            hashlib.sha256(json.dumps([list(dialogue), adapter]).encode()).hexdigest()[:12] for dialogue in dialogues
        )
        return Generated(replies, len(replies))

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        return [1.0 for _ in references]

    def train(self, job: TrainingJob, on_progress: OnProgress = no_progress) -> TrainingResult:
        scratch = self.adapters.folder / ".scratch"
        scratch.mkdir(parents=True)
        (scratch / WEIGHTS).write_text(json.dumps([job.seed, job.start]))
        (scratch / CONFIG).write_text(json.dumps({"r": 1, "lora_alpha": 1, "target_modules": ["stub"]}))
        name = self.adapters.add(scratch)
        return TrainingResult(name, 1, 1, len(job.rows), (2.0, 1.0), (1.0, 1.0), 0.0, "stub")
