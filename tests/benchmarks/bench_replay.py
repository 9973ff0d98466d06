"""A run of the embedded model against its replay: wall time of whole commands, imports included.

The run uses no cached replies of other runs. A run that is already in --folder is not run again.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from form import figure, publish

FOLDER = Path("build/bench/replay")
REPORTED = re.compile(r"(\d+) rounds again in ([\d.]+) s, (\d+) times faster than the original \((\d+) s\)(.*?):")
TIMES_FASTER = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="handbook")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of nslora run")
    wanted = parser.parse_args()
    original = wanted.folder / "run"
    seconds = wanted.folder / "seconds.json"
    if not seconds.is_file():
        wanted.folder.mkdir(parents=True, exist_ok=True)
        took, _ = command(
            "run", wanted.task, "--folder", original, "--overwrite", "--set", "reuse_replies=false", *wanted.options
        )
        seconds.write_text(json.dumps(took))
    original_s, original_cpu_s = json.loads(seconds.read_text())
    again = next(path for i in range(1, 1000) if not (path := wanted.folder / f"replay-{i}").exists())
    (replay_s, replay_cpu_s), output = command("replay", original, "--into", again)
    found = REPORTED.search(output.replace("\n", " "))
    if found is None:
        raise RuntimeError(f"The replay did not report its time:\n{output}")
    rounds, inside_s, loaded = int(found.group(1)), float(found.group(2)), found.group(5)
    nodes_s = json.loads((original / "result" / "report.json").read_text())["wall_s"]
    sys.exit(
        0
        if publish(
            "replay",
            [
                figure("rounds", rounds),
                figure("original, whole command", original_s, "s"),
                figure("original, inside nodes", nodes_s, "s"),
                figure("replay, whole command", replay_s, "s"),
                figure("replay, without imports", inside_s, "s"),
                figure("CPU time, original over replay", original_cpu_s / replay_cpu_s),
                figure("model loaded for the replay", float("loaded" in loaded), at_most=0),
                figure("times faster, inside", nodes_s / inside_s, at_least=TIMES_FASTER),
                figure("times faster, whole commands", original_s / replay_s, at_least=TIMES_FASTER),
            ],
            title=f"replay of {wanted.task}: decisions, rewards and hashes the same",
        )
        else 1
    )


def command(*words: str | Path) -> tuple[tuple[float, float], str]:
    """Run an `nslora` command. Returns its seconds, its CPU seconds, and its output.

    Raises RuntimeError if it fails; a replay with differences fails.
    """
    started, before = time.monotonic(), cpu_s()
    done = subprocess.run(
        [Path(sys.executable).with_name("nslora"), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return (time.monotonic() - started, cpu_s() - before), done.stdout


def cpu_s() -> float:
    """CPU seconds of all commands so far. Other work on the machine hardly changes them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
