"""Output that all benchmarks share: a printed table, and `build/bench/NAME.json`."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path("build/bench")
README = Path(__file__).parent / "README.md"


@dataclass(frozen=True)
class Figure:
    """One measured number. goal: in words; "" if the number has no goal, and then holds is None."""

    name: str
    value: float
    unit: str = ""
    goal: str = ""
    holds: bool | None = None


def figure(
    name: str, value: float, unit: str = "", *, at_least: float | None = None, at_most: float | None = None
) -> Figure:
    """A figure and, if there is a limit, its goal."""
    if at_least is not None:
        return Figure(name, value, unit, f"at least {at_least:g}", value >= at_least)
    if at_most is not None:
        return Figure(name, value, unit, f"at most {at_most:g}", value <= at_most)
    return Figure(name, value, unit)


def publish(name: str, figures: list[Figure], title: str = "", **more: Any) -> bool:
    """Print the table and write the JSON. Returns whether every goal holds. more: further keys of the JSON."""
    table = Table(title=title or f"bench-{name}", title_justify="left")
    for column in ("", "value", "unit", "goal", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    for each in figures:
        fate = {None: "", True: "[green]holds[/]", False: "[red]falls short[/]"}[each.holds]
        table.add_row(each.name, f"{each.value:.4g}", each.unit, each.goal, fate)
    Console(width=120).print(table)
    record = {
        "figures": [asdict(each) for each in figures],
        "machine": machine(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return all(each.holds is not False for each in figures)


def in_readme(name: str, lines: Sequence[str], readme: Path = README) -> str:
    """The README with `lines` between the marks of the block `name`. Raises ValueError if it lacks the block."""
    text = readme.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin, written by make {name} -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{readme.name} has no block between '{begin}' and '{end}': add both lines where it belongs.")
    return "\n".join([before + begin, "", *lines, "", end + after])


def machine() -> dict[str, Any]:
    """The hardware and the Python version; no host name."""
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if cpu.exists()
        else []
    )
    torch = sys.modules.get("torch")  # if it is loaded already
    gpu = (
        {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__} if torch and torch.cuda.is_available() else {}
    )
    return {
        "system": platform.system(),
        "processor": names[0] if names else platform.machine(),
        **gpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured, with `+` if files differ from it; "" outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    # Records and the tables of README.md change with every finished cell. They are not code.
    changed = git(
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/",
        ":(top,exclude)tests/benchmarks/README.md",
        ":(top,exclude)tests/benchmarks/records",
    )
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
