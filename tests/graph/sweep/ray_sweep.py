"""A sweep on two nodes of Ray: its driver is killed, the next one is stopped, and a worker of the third one is killed.

Run by test_ray_jobs.py in Ray's environment: python ray_sweep.py FOLDER    reads grid.yaml there, and writes found.json
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from langgraph.runtime import RunControl
from ray_nodes import two_nodes

from nslora import sweep
from nslora.graph.sweep.sweep import records


def workers() -> list[psutil.Process]:
    """The processes that are at a run."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "ray::_called" in " ".join(process.cmdline()):
                found.append(process)
    return found


def soon(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.2)


def evaluations(folder: Path) -> int:
    return len(list(folder.glob("runs/*/evaluations/*.jsonl")))


def main(folder: Path) -> None:
    grid, place, killed, control = folder / "grid.yaml", folder / "sweep", list[int](), RunControl()
    with two_nodes():
        command = [sys.executable, "-m", "nslora.graph.cli", "sweep", grid, "--on", "ray", "--jobs", "2"]
        driver = subprocess.Popen([*command, "--folder", place, "--no-share"])
        soon(lambda: evaluations(place) or driver.poll() is not None)
        driver.kill()
        driver.wait()
        soon(lambda: not workers())

        def stop() -> None:
            soon(workers)
            control.request_drain()

        threading.Thread(target=stop, daemon=True).start()
        stopped = sweep(grid, folder=place, jobs=2, on="ray", share=False, notify=print, control=control)
        begun, known = evaluations(place), records(place)

        def kill() -> None:
            soon(lambda: evaluations(place) > begun and workers())
            victim = workers()[0]
            victim.kill()
            killed.append(victim.pid)

        threading.Thread(target=kill, daemon=True).start()
        found = sweep(grid, folder=place, jobs=2, on="ray", share=False, notify=print)
    told = {"killed": killed, "left": stopped.left, "failed": stopped.failed, "known": list(known), "rows": found.rows}
    (folder / "found.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
