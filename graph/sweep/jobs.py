"""Jobs: calls in processes of their own. An executor says where they run; `LocalExecutor` runs them on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Literal, Protocol

from langgraph.runtime import RunControl

from nslora.tools.policies.environment import default_threads

POLL_S = 0.2
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Job:
    """A call, as plain data, so that any process on any machine can make it.

    Attributes:
        name: For people.
        function: `module:function`. If the module has a function `prepare`, a process calls it before its first job.
        arguments: Keyword arguments, and the result of the call, are values of JSON.
        log: File for what the call prints. Its result, or its error, lies beside it.
    """

    name: str
    function: str
    arguments: Mapping[str, Any]
    log: Path

    @property
    def answer(self) -> Path:
        """The file with {"result"} or {"error"}, which the job itself writes."""
        return self.log.with_suffix(".json")


@dataclass(frozen=True)
class Event:
    """What became of a job. stopped: the sweep was asked to stop, and the job ended before its end."""

    job: Job
    status: Literal["started", "finished", "failed", "stopped"]
    result: Any = None
    error: str = ""
    wall_s: float = 0.0


class Executor(Protocol):
    """Where jobs run."""

    def run(self, groups: Sequence[Sequence[Job]], control: RunControl) -> Iterator[Event]:
        """Run every job, the jobs of one group one after the other, and say when each starts and ends.

        A job that fails or dies is an event, and the others go on. When `control` asks to drain, no job is started,
        those that run get SIGTERM, and the iteration ends with the last of them. When the iterator is closed, they are
        killed.
        """
        ...


@dataclass
class LocalExecutor:
    """Processes of this machine. jobs: how many at once, each with its share of the cores.

    If CUDA_VISIBLE_DEVICES names several GPUs, each process gets one of them.
    """

    jobs: int = 1
    _free: list["_Worker"] = field(default_factory=list, init=False)

    def run(self, groups: Sequence[Sequence[Job]], control: RunControl) -> Iterator[Event]:
        waiting, running, told = [list(group) for group in groups if group], dict[_Worker, list[Job]](), False
        with DefaultSelector() as selector:
            try:
                while running or (waiting and not control.drain_requested):
                    while waiting and len(running) < self.jobs and not control.drain_requested:
                        worker, group = self._worker(running), waiting.pop(0)
                        worker.begin(group[0])
                        running[worker] = group
                        selector.register(worker.process.stdout, EVENT_READ, worker)  # type: ignore[arg-type]
                        yield Event(group[0], "started")
                    if control.drain_requested and not told:
                        told = True
                        for worker in running:
                            worker.process.terminate()
                    for key, _ in selector.select(POLL_S):
                        worker = key.data
                        selector.unregister(key.fileobj)
                        job, *rest = running.pop(worker)
                        waiting[:0] = [rest] if rest else []
                        yield self._ended(worker, job, stopping=told)
            finally:
                for worker in (*running, *self._free):
                    worker.end()
                self._free.clear()

    def _worker(self, running: Iterable["_Worker"]) -> "_Worker":
        """A process that waits, or a new one on the GPU that fewest others use."""
        if self._free:
            return self._free.pop()
        used = [worker.gpu for worker in running]
        return _Worker(min(os.environ.get(GPUS, "").split(","), key=used.count), default_threads() // self.jobs)

    def _ended(self, worker: "_Worker", job: Job, *, stopping: bool) -> Event:
        status, wall_s = worker.status(), time.monotonic() - worker.begun
        if worker.process.poll() is None:
            self._free.append(worker)
        else:
            worker.end()
        try:
            answer = json.loads(job.answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            why = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            answer = {"error": f"the process ended with {why} (see {job.log})"}
        if "result" in answer:
            return Event(job, "finished", answer["result"], wall_s=wall_s)
        return Event(job, "stopped" if stopping else "failed", error=answer["error"], wall_s=wall_s)


class _Worker:
    """A process that imports libraries once and forks for each job. Its end, whatever the cause, ends its job."""

    def __init__(self, gpu: str, threads: int) -> None:
        self.gpu, self.begun = gpu, 0.0
        own = {"OMP_NUM_THREADS": str(max(1, threads)), **({GPUS: gpu} if gpu else {})}
        own["PYTHONPATH"] = os.pathsep.join(each or os.getcwd() for each in sys.path)
        # A session of its own: Ctrl-C at the terminal is for the process that asked, which then says who stops.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nslora.graph.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **own},
            start_new_session=True,
        )

    def begin(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.answer.unlink(missing_ok=True)
        self.begun = time.monotonic()
        line = json.dumps({"function": job.function, "arguments": dict(job.arguments), "log": str(job.log)})
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def status(self) -> int:
        """The exit status of the job, once there is something to read; below 0 a signal ended it."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        return int(said) if said else self.process.wait()

    def end(self) -> None:
        """Kill the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def ended(
    events: Iterable[Event],
    total: int,
    at_once: int,
    notify: Callable[[str], None],
    words: Callable[[Event], str] = lambda event: event.error,
) -> Iterator[Event]:
    """The jobs that finished or failed, with a line for each that begins or ends, and the time that is left.

    Args:
        events: Of an executor.
        total: Jobs in all.
        at_once: Jobs that run at once, for the time that is left.
        notify: Is called with each line.
        words: What to say of a job that ended.
    """
    took: list[float] = []
    for event in events:
        if event.status in ("started", "stopped"):
            notify(f"{event.status:<8} {event.job.name}")
            continue
        took.append(event.wall_s)
        said = ", ".join(each for each in (words(event), span(event.wall_s)) if each)
        left = span(sum(took) / len(took) * (total - len(took)) / at_once)
        notify(f"{event.status:<8} {len(took)} of {total}: {event.job.name}: {said}; about {left} left")
        yield event


def span(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
