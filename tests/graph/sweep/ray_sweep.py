"""A sweep on two nodes of Ray, one worker of which is killed; run by test_ray_jobs.py in Ray's environment.

python ray_sweep.py FOLDER    reads cells.json there, and writes found.json
"""

import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from ray_nodes import two_nodes

from nslora import sweep


def kill_one(folder: Path, killed: list[int]) -> None:
    """Kill the worker of a run that has an evaluation."""
    while not killed:
        time.sleep(0.2)
        if not list(folder.glob("sweep/runs/*/evaluations/*.jsonl")):
            continue
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "ray::_called" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    return


def main(folder: Path) -> None:
    cells, killed = json.loads((folder / "cells.json").read_text()), list[int]()
    with two_nodes():
        threading.Thread(target=kill_one, args=(folder, killed), daemon=True).start()
        found = sweep(cells, folder=folder / "sweep", jobs=2, on="ray", share=False, notify=print)
    (folder / "found.json").write_text(json.dumps({"killed": killed, "rows": found.rows}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
