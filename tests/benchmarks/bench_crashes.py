"""Kill a run on a tiny model (`kill -9`) at many places, resume it, and compare with the uninterrupted run."""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from crash_points import NODES
from crash_runs import ENGINES, chosen, crash, import_all, in_child, outcome, serving, uninterrupted
from form import figure, publish
from rich.console import Console
from rich.table import Table

POINTS = 60
GROUPS: dict[str, tuple[str, ...]] = {
    "before a node": tuple(f"node {name}: before" for name in NODES),
    "after a node's files, before its checkpoint": (*(f"node {name}: after" for name in NODES), "checkpoint: before"),
    "around the rows of a checkpoint": ("checkpoint: after", "checkpoint: writes"),
    "inside training: a step done or saved, its tensors": ("training",),
    "inside an edit: call in progress, call recorded": ("editor",),
    "while a file is half written, or not yet renamed": ("file",),
    "around cached replies and training records": ("replies", "adapter record"),
    "around requests to a server": ("served",),
    "around a training program": ("launched",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--kinds", nargs="*", help="only places whose name begins with one of these; one kill each")
    parser.add_argument("--engines", action="store_true", help="replies from a server, training by torchrun")
    wanted = parser.parse_args()
    import_all()
    with tempfile.TemporaryDirectory(prefix="nslora-crashes-") as name, ExitStack() as stack:
        setting = Path(name) / "setting"
        setting.mkdir()
        if in_child(lambda: write_setting(setting), Path(name) / "log"):
            raise RuntimeError((Path(name) / "log").read_text())
        settings = {}
        if wanted.engines:
            served = {"replies": stack.enter_context(serving(setting / "model", Path(name) / "log"))}
            settings = {"engine": {**served, **ENGINES}, "strategy": "textgrad once -> lora", "max_rounds": 2}
        (setting / "settings.json").write_text(json.dumps(settings))
        sys.exit(0 if measure(Path(name), wanted.points, wanted.kinds) else 1)


def measure(folder: Path, points: int, kinds: list[str] | None) -> bool:
    """Kill at `points` places. Returns whether every goal holds."""
    setting = folder / "setting"
    places = uninterrupted(folder / "whole", setting)
    expected = outcome(folder / "whole" / "run")
    picked = chosen(places, points)
    if kinds:
        picked = [next((n, p) for n, p in chosen(places, len(places), seed=1) if p.startswith(kind)) for kind in kinds]
    started = time.monotonic()
    crashes = []
    for number, place in picked:
        crashes.append(crash(folder / "killed", setting, expected, place, number))
        fate = "no difference" if not crashes[-1].differences else crashes[-1].differences[0]
        print(f"{number:4} of {len(places)}  {place:40} {fate}", flush=True)
    Console(width=120).print(by_place([asdict(each) for each in crashes]))
    unlike = sum(bool(each.differences) for each in crashes)
    return publish(
        "crashes",
        [
            figure("kills", len(crashes), at_least=min(points, len(picked))),
            figure("kinds of places", len({each.place for each in crashes})),
            figure("runs that ended differently", unlike, at_most=0),
            figure("editor calls paid twice", sum(each.calls_again for each in crashes), at_most=0),
            figure("training steps done twice", sum(each.steps_again for each in crashes), at_most=0),
            figure("time", time.monotonic() - started, "s"),
        ],
        title="kill -9, then resume",
        crashes=[asdict(each) for each in crashes],
    )


def by_place(crashes: list[dict[str, Any]]) -> Table:
    """The kills, grouped by place."""
    table = Table(
        "killed",
        "kills",
        "ended differently",
        "editor calls paid twice",
        "training steps done twice",
        title="kill -9, then resume",
        title_justify="left",
    )
    for name, beginnings in GROUPS.items():
        hit = [each for each in crashes if each["place"].startswith(beginnings)]
        if hit:
            table.add_row(
                name,
                str(len(hit)),
                str(sum(bool(each["differences"]) for each in hit)),
                str(sum(each["calls_again"] for each in hit)),
                str(sum(each["steps_again"] for each in hit)),
            )
    return table


def write_setting(folder: Path) -> None:
    from nslora.tools.testing.tiny_model import write_tiny_model
    from nslora.tools.testing.tiny_task import write_tiny_task

    write_tiny_task(folder / "task", rows=6)
    write_tiny_model(folder / "model")


if __name__ == "__main__":
    main()
