"""Kill -9 and resume: some of the places of `make bench-crashes`, in one process tree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PLACES = [
    "node evaluate: after",
    "training: step done",
    "training: tensors: after",
    "editor: call recorded",
    "file: half written",
    "adapter record: after",
]
WITH_ENGINES = [
    "served: load: after",
    "served: reply: after",
    "served: loss: before",
    "replies: before",
    "launched: start: before",
    "launched: start: after",
    "launched: result: before",
    "adapter record: after",
    "node lora_update: after",
    "checkpoint: after",
]


def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    refuse_differences(tmp_path, "--kinds", *PLACES)


@pytest.mark.engines
def test_a_killed_run_with_a_server_and_a_launcher_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Replies from a server of its own, training by torchrun in two processes: four minutes on two cores."""
    refuse_differences(tmp_path, "--engines", "--kinds", *WITH_ENGINES)


def refuse_differences(tmp_path: Path, *arguments: str) -> None:
    """Kill a run at one place of each kind that is named, and compare it with one that nothing happened to."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "bench_crashes.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    record = json.loads((tmp_path / "build" / "bench" / "crashes.json").read_text())
    figures = {each["name"]: each["value"] for each in record["figures"]}
    assert figures["kills"] == len(arguments[arguments.index("--kinds") + 1 :])
    assert figures["runs that ended differently"] == 0
    assert figures["editor calls paid twice"] == 0
    assert figures["training steps done twice"] == 0
