"""A tracker that remembers, and runs for it: in a test's process, or as a program of their own that is killed."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from fakes import FakePolicy

from nslora.graph.runs.run import Run
from nslora.graph.tracking.tracker import Entry, Started, Status, TrackedRun
from nslora.tools.policy import OnStep, TrainingJob, TrainingResult, no_progress
from nslora.tools.tasks.task import Task, load_task
from nslora.tools.testing.tiny_task import write_tiny_task

STEPS = 6  # of each training job


class RecordingTracker:
    """Remembers what it was given, by the id of the tracker's run.

    Attributes:
        known: What each call of `start` was told.
        entries: By run.
        files: Text of each artefact that is text, by name.
        ended: The last status.
        tells: Whether it knows how far it came.
    """

    known: ClassVar[list[TrackedRun]] = []
    entries: ClassVar[dict[str, list[Entry]]] = {}
    files: ClassVar[dict[str, str]] = {}
    ended: ClassVar[list[Status]] = []
    tells: ClassVar[bool] = True

    @classmethod
    def forget(cls) -> None:
        cls.known, cls.entries, cls.files, cls.ended, cls.tells = [], {}, {}, [], True

    def start(self, run: TrackedRun) -> Started:
        self.known.append(run)
        self.id = run.known or f"tracked-{len(self.entries)}"
        there = self.entries.setdefault(self.id, [])
        return Started(self.id, "in memory", sent=(there[-1].number if there else 0) if self.tells else None)

    def log(self, entries: Sequence[Entry]) -> None:
        self.entries[self.id] += entries

    def store(self, entry: Entry) -> None:
        assert entry.artifact is not None
        self.entries[self.id].append(entry)
        for file in [entry.artifact.path, *entry.artifact.path.rglob("*")]:
            if file.is_file():
                self.files[f"{entry.artifact.name}:{file.name}"] = file.read_bytes().decode("utf-8", "replace")

    def finish(self, status: Status) -> None:
        self.ended.append(status)

    @classmethod
    def series(cls, name: str, run: str = "tracked-0") -> list[tuple[int, float]]:
        return [(each.step, each.metrics[name]) for each in cls.entries[run] if name in each.metrics]


class SteppingPolicy(FakePolicy):
    """Reports its training steps, whose losses are 1, 1/2, 1/3, ... over all jobs. untold: a step without an event."""

    untold = 0

    def train(self, job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        before, log = STEPS * (job.seed % 1000), []  # jobs are seeded by their number
        for step in range(1, STEPS + 1):
            log.append({"loss": 1 / (before + step), "grad_norm": 1.0, "learning_rate": 0.5})
            if step != self.untold:
                on_progress(step, STEPS, log[-1])
        return replace(super().train(job), log=tuple(log))


def tracked_run(folder: Path, task: Task, **settings: Any) -> Run:
    """A run of two training jobs, or the one that is there."""
    policy = SteppingPolicy(folder / "adapters", learns=False)
    if (folder / "run.json").exists():
        return Run.open(folder, task=task, model=policy)
    values = {"track": RecordingTracker, "strategy": "textgrad once -> lora", "max_rounds": 3, **settings}
    return Run.create(folder, task=task, model=policy, reuse_replies=False, **values)


def kill_after(run: Run, events: int, tracker: str) -> None:
    """Work on a run, and kill this process after so many events, as soon as a tracker has what there is.

    events: 0 for no kill; if negative, the tracker is not waited for.
    """
    for number, _ in enumerate(run.stream(), 1):
        if number == abs(events):
            while events > 0 and sent(run.folder, tracker) < lines(run.folder):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)


def lines(folder: Path) -> int:
    """Entries of a run's journal."""
    return (folder / "tracking" / "events.jsonl").read_bytes().count(b"\n")


def sent(folder: Path, tracker: str) -> int:
    """How far a tracker came."""
    path = folder / "tracking" / f"{tracker}.json"
    return int(json.loads(path.read_text())["sent"]) if path.exists() else 0


if __name__ == "__main__":
    at, name, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if not (at.parent / "task").exists():
        write_tiny_task(at.parent / "task", rows=6)
    limit = {"timeout_s": float(os.environ.get("TRACKING_TIMEOUT_S", "120"))}
    kill_after(tracked_run(at, load_task(at.parent / "task"), track=name, tracking=limit), after, name)
