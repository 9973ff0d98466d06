"""The cells of bench_strategies. Each is an ordinary run in its own process; finished cells are recorded.

Cells of one task and seed share training jobs and replies through a pool: the same job gives the same adapter again.
The matrix is therefore much cheaper than its cells one by one. The compute of a cell is counted by formula, as if
nothing were shared.
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from form import commit, machine
from strategy_tasks import BenchTask, bench_tasks

from nslora.graph.runs.copy_files import copy_records
from nslora.graph.runs.run import Run
from nslora.graph.sweep.jobs import Job
from nslora.graph.sweep.run_cell import prepare as prepare  # for the worker that forks for `run_cell`
from nslora.graph.sweep.run_cell import to_the_end
from nslora.tools.files import read_jsonl

FOLDER = Path("build/bench/strategies")
RECORDS = Path(__file__).parent / "records" / "strategies.jsonl"
SIGNAL = {"routing": {"use_signal": True}}  # as the default was in all cells on record
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "neurosymbolic": SIGNAL,
    "lora": {},
    "textgrad": {},
    "lora -> textgrad": {},
    "textgrad -> lora": {},
    "textgrad -> lora -> textgrad": {},
    "textgrad once -> lora": {},  # one edit, saturated or not
    "random": {},
    "neurosymbolic-without-classifier": {},
    "neurosymbolic-without-signal": {},
    "neurosymbolic, no remade data": {**SIGNAL, "strategy": "neurosymbolic", "remade_per_row": 0},
}
SINGLE_KINDS = ("lora", "textgrad")
FIXED_ORDERS = (*SINGLE_KINDS, *(strategy for strategy in STRATEGIES if "->" in strategy))
ROUTER = "neurosymbolic"
# The goal is "no change" in 19 of 20 runs, so the router gets ten seeds of each task with nothing to gain.
NOTHING = ("nothing-missing", "nothing-possible", "nothing-but-chance")
ROUTER_SEEDS_OF_NOTHING = 10


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    task: str
    strategy: str
    seed: int

    @property
    def run_name(self) -> str:
        """Of its run, in the folder of runs."""
        strategy = self.strategy.replace(" -> ", "-then-").replace(", ", "-").replace(" ", "-")
        return f"{self.task}/{strategy}/{self.seed}"

    @property
    def folder(self) -> Path:
        """The folder of its run, for `nslora show`."""
        return FOLDER / "runs" / self.run_name


def cells_of(tasks: Mapping[str, BenchTask]) -> Iterator[Cell]:
    """Every cell, seed by seed: an interrupted matrix is complete for the first seeds."""
    for seed in range(max(*(task.seeds for task in tasks.values()), ROUTER_SEEDS_OF_NOTHING)):
        for task in tasks.values():
            for strategy in STRATEGIES if seed < task.seeds else ():
                yield Cell(task.name, strategy, seed)
            if task.name in NOTHING and task.seeds <= seed < ROUTER_SEEDS_OF_NOTHING:
                yield Cell(task.name, ROUTER, seed)


def groups_of(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells grouped by task and seed. Within a group they run in sequence and share training jobs through the pool."""
    groups: dict[tuple[int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.seed, cell.task), []).append(cell)
    return list(groups.values())


def key_of(record: Mapping[str, Any]) -> Cell:
    return Cell(record["task"], record["strategy"], record["seed"])


def finished() -> dict[Cell, dict[str, Any]]:
    """The records of the finished cells."""
    return {key_of(record): record for record in read_jsonl(RECORDS)}


def job_of(cell: Cell, data: Path | None) -> Job:
    """The cell as a job. data: folder of the public sets."""
    arguments = {**asdict(cell), "data": str(data.absolute()) if data else ""}
    return Job(str(cell), "strategy_cells:run_cell", arguments, FOLDER / "logs" / f"{cell.run_name}.txt")


def run_cell(task: str, strategy: str, seed: int, data: str) -> dict[str, Any]:
    """Run a cell to its end. Returns its record."""
    cell, bench = Cell(task, strategy, seed), bench_tasks(Path(data) if data else None)[task]
    started = time.monotonic()
    shutil.rmtree(cell.folder, ignore_errors=True)
    settings = {"strategy": cell.strategy, **STRATEGIES[cell.strategy]}
    run = Run.create(
        cell.folder,
        task=bench.load(FOLDER / "tasks"),
        seed=cell.seed,
        max_rounds=bench.rounds,
        max_tflop=bench.tflop,
        device={"threads": 1, "device": "cpu"},
        **settings,
    )
    pool = FOLDER / "pool" / commit() / task / str(seed)  # another commit may count or train differently
    pool.mkdir(parents=True, exist_ok=True)
    copy_records(pool, cell.folder, editor=False, trained=True)
    to_the_end(run)
    report = run.report()
    copy_records(cell.folder, pool, editor=False, trained=True)
    scores = read_jsonl(cell.folder / "result" / "test.jsonl")
    return record_of(cell, bench, report, scores, time.monotonic() - started)


def record_of(
    cell: Cell, task: BenchTask, report: Mapping[str, Any], scores: list[Any], wall_s: float
) -> dict[str, Any]:
    """The part of a run that the tables need, small enough to be committed.

    passed: one digit per test question, in the order of the task's file. curve: (TFLOP, best validation reward so far).
    """
    best = report["validation"]["base"]["reward"]
    spent = report["cost"]["start_tflop"]
    curve = [[round(spent, 3), round(best, 4)]]
    for each in report["rounds"]:
        spent += each["flop"] / 1e12
        best = max(best, each["reward_after"] if each["reward_after"] is not None else 0.0)
        curve.append([round(spent, 3), round(best, 4)])
    by_candidate = {name: [row for row in scores if row["candidate"] == name] for name in ("base", "result")}
    return {
        **asdict(cell),
        "planted": task.planted,
        "cap_tflop": task.tflop,
        **{
            name: {
                "passed": "".join(str(int(row["passed"])) for row in rows),
                "rewards": [round(row["reward"], 4) for row in rows],
                "checks": {check: round(value, 4) for check, value in report["test"][name]["checks"].items()},
            }
            for name, rows in by_candidate.items()
        },
        "changed": report["result"] != report["start"],
        "curve": curve,
        "stop": report["stop"],
        "rounds": [
            {"action": each["action"], "kept": each["kept"], "reward": each["reward_after"], "error": each["error"]}
            for each in report["rounds"]
        ],
        "cost": {name: round(value, 4) for name, value in report["cost"].items()},
        # For information only: training jobs and replies that another cell computed take no time here.
        "wall_s": round(wall_s, 1),
        "processor": machine()["processor"],
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
