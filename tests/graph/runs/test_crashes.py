"""Kill -9 and resume: six of the places of `make bench-crashes`, in one process tree."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PLACES = [
    "node evaluate: after",
    "training: step done",
    "training: tensors: after",
    "editor: call recorded",
    "file: half written",
    "adapter record: after",
]


def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "bench_crashes.py", "--kinds", *PLACES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    record = json.loads((tmp_path / "build" / "bench" / "crashes.json").read_text())
    figures = {each["name"]: each["value"] for each in record["figures"]}
    assert figures["kills"] == len(PLACES)
    assert figures["runs that ended differently"] == 0
    assert figures["editor calls paid twice"] == 0
    assert figures["training steps done twice"] == 0
