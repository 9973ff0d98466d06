"""Jobs as Ray tasks, on one machine or on a cluster whose nodes share the sweep's folder."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langgraph.runtime import RunControl

from nslora.graph.sweep.jobs import POLL_S, Event, Job
from nslora.graph.sweep.worker import answer_of
from nslora.tools.errors import first_line
from nslora.tools.policies.ray_cluster import connected

RETRIES = 3  # of a task whose worker or node died; its run goes on from its checkpoints


@dataclass
class RayExecutor:
    """Ray tasks, each in a process of its own.

    Attributes:
        jobs: How many at once.
        place: The cluster, see `ray_cluster.py`.
        cpus: Of each job, which has as many threads.
        gpus: Of each job; None for one, if the cluster has any.
    """

    jobs: int = 1
    place: str = "ray"
    cpus: float = 1
    gpus: float | None = None

    def run(self, groups: Sequence[Sequence[Job]], control: RunControl) -> Iterator[Event]:
        """Run every job, as an executor does. Jobs that run see by a file beside their log that they shall stop."""
        ray = connected(self.place)
        gpus = self.gpus if self.gpus is not None else min(1, ray.cluster_resources().get("GPU", 0))
        # Of one call for each process, so that no job leaves anything behind for the next one.
        task = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_retries=RETRIES, max_calls=1)(_called)
        waiting, running, told = [list(group) for group in groups if group], dict[Any, tuple[list[Job], float]](), False
        try:
            while running or (waiting and not control.drain_requested):
                while waiting and len(running) < self.jobs and not control.drain_requested:
                    group = waiting.pop(0)
                    _clear(group[0])
                    called = task.remote(group[0].function, dict(group[0].arguments), str(group[0].log))
                    running[called] = group, time.monotonic()
                    yield Event(group[0], "started")
                if control.drain_requested and not told:
                    told = True
                    for (job, *_), _ in running.values():
                        _stop_file(job.log).touch()
                for called in ray.wait(list(running), timeout=POLL_S)[0]:
                    (job, *rest), began = running.pop(called)
                    waiting[:0] = [rest] if rest else []
                    yield _ended(lambda: ray.get(called), job, time.monotonic() - began, told)  # noqa: B023
        finally:
            for called, ((job, *_), _) in running.items():
                ray.cancel(called, force=True)
                _stop_file(job.log).unlink(missing_ok=True)


def _stop_file(log: Path) -> Path:
    return log.with_suffix(".stop")


def _clear(job: Job) -> None:
    """Remove what an earlier try of a job left."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.unlink(missing_ok=True)
    _stop_file(job.log).unlink(missing_ok=True)


def _called(function: str, arguments: Mapping[str, Any], log: str) -> dict[str, Any]:
    """Make a job's call in a worker of Ray; what it prints goes to the log, behind that of a try that was killed."""
    stop = _stop_file(Path(log))
    if stop.exists():
        return {"error": "stopped before it began"}
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    ended, rays_own = threading.Event(), signal.getsignal(signal.SIGTERM)

    def watch() -> None:
        while not ended.wait(POLL_S):
            # Not before the job has its own answer to the signal: Ray's would end the worker, and Ray try again.
            if stop.exists() and signal.getsignal(signal.SIGTERM) is not rays_own:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        return answer_of(function, dict(arguments))
    finally:
        ended.set()


def _ended(result: Callable[[], Mapping[str, Any]], job: Job, wall_s: float, stopping: bool) -> Event:
    """What became of a task. An error of Ray: its worker died at every try."""
    _stop_file(job.log).unlink(missing_ok=True)
    try:
        answer = result()
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {first_line(error)} (see {job.log})"}
    if "result" in answer:
        return Event(job, "finished", answer["result"], wall_s=wall_s)
    return Event(job, "stopped" if stopping else "failed", error=answer["error"], wall_s=wall_s)
