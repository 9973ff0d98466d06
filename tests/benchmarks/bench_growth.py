"""500 rounds without a model: what a round adds to the database, last rounds against first; reading their history.

Nodes are stand-ins that write the same keys as the real ones. Graph, routing, checkpointer and serialiser are the real
ones. The state grows by one summary per round; checkpoints of the whole state would multiply this growth. Every 20th
round stores all summaries once, so that rounds are compared by their median, and the whole database has a limit.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fakes import ObedientPolicy
from form import Figure, figure, publish
from rich.console import Console

from nslora.graph import build
from nslora.graph.cli.tables import show_history
from nslora.graph.runs.checkpoints import CHECKPOINTS_FILE, sqlite_checkpoints
from nslora.graph.runs.run import Run
from nslora.graph.state import (
    AdaptationState,
    Candidate,
    Changes,
    Decision,
    Measured,
    Proposal,
    RoundRecord,
    first_state,
)
from nslora.nodes.finish import finish
from nslora.tools.tasks.task import load_task
from nslora.tools.testing.tiny_task import write_tiny_task

ROUNDS = 500
WINDOW = 100  # rounds compared at each end
ALLOWED = 1.10
MOST_MB = 25  # of 500 rounds
READ_ROUNDS, READ_S = (100, 400), 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="nslora-growth-") as name:
        found = grow(Path(name), rounds)
        read = [it for each in READ_ROUNDS if each <= rounds for it in read_back(Path(name), each)]
    window = min(WINDOW, rounds // 3)
    first, last = slice(1, 1 + window), slice(-window, None)
    bytes_first, bytes_last = statistics.median(found.bytes_[first]), statistics.median(found.bytes_[last])
    ms_first, ms_last = quiet(found.ms[first]), quiet(found.ms[last])
    holds = publish(
        "growth",
        [
            figure("rounds", rounds),
            figure("database per round, first rounds", bytes_first / 1e3, "kB"),
            figure("database per round, last rounds", bytes_last / 1e3, "kB"),
            figure("last over first, bytes", bytes_last / bytes_first, at_most=ALLOWED),
            figure("time per round, first rounds", ms_first, "ms"),
            figure("time per round, last rounds", ms_last, "ms"),
            figure("last over first, time", ms_last / ms_first, at_most=ALLOWED),
            figure("whole database", found.total_bytes / 1e6, "MB", at_most=MOST_MB * rounds / ROUNDS),
            *read,
        ],
        title=f"{rounds} rounds of checkpoints",
    )
    sys.exit(0 if holds else 1)


def quiet(ms: list[float]) -> float:
    """The tenth percentile: the time of a round that other work does not disturb."""
    return statistics.quantiles(ms, n=10)[0]


@dataclass(frozen=True)
class Growth:
    """Bytes and CPU milliseconds (of this process) of each round, and the final size."""

    bytes_: list[float]
    ms: list[float]
    total_bytes: int


def grow(
    folder: Path, rounds: int, *, thread: str = "growth", start: AdaptationState | None = None, whole: bool = True
) -> Growth:
    """Run `rounds` rounds of stand-ins; whole=False stops before `finish`."""
    for name, node in stand_ins(rounds).items():
        setattr(build, name, node)
    path = folder / CHECKPOINTS_FILE
    sizes, times = [0.0], [time.process_time()]
    with sqlite_checkpoints(path) as saver:
        graph = build.build_graph(checkpointer=saver, interrupt_before=None if whole else ["finish"])
        config: Any = {"configurable": {"thread_id": thread}, "recursion_limit": build.STEPS_PER_ROUND * (rounds + 2)}
        first = start or first_state("0" * 16)
        for part in graph.stream(first, config, stream_mode="updates", durability="sync"):
            if "monitor" in part:
                sizes.append(float(size(path)))
                times.append(time.process_time())
    bytes_ = [b - a for a, b in pairwise(sizes)]
    ms = [1000 * (b - a) for a, b in pairwise(times)]
    return Growth(bytes_, ms, size(path))


def read_back(folder: Path, rounds: int) -> list[Figure]:
    """CPU seconds of what reads a whole run of `rounds` rounds, the best of three."""
    task = load_task(write_tiny_task(folder / "task"))
    run = Run.create(folder / f"run{rounds}", task=task, model=ObedientPolicy(), max_rounds=rounds)
    grow(run.folder, rounds, thread=run.thread, start=run.first_state(), whole=False)
    build.finish = finish  # the real one, which tests the start under this policy
    with run.checkpointer() as saver:  # whose evaluation was none
        build.build_graph(checkpointer=saver).update_state(run.config, {"start_measured": None}, as_node="monitor")
    run.adapt()
    checkpoints = len(run.history())
    figures = [figure(f"checkpoints of {rounds} rounds", checkpoints)]
    for name, read in {
        "run.history()": run.history,
        "nslora history": lambda: show_history(Console(file=io.StringIO()), run.history()),
        "run.show()": run.show,
        "run.report()": run.report,
    }.items():
        times = []
        for _ in range(3):
            begun = time.process_time()
            read()
            times.append(time.process_time() - begun)
        figures.append(figure(f"{name}, {rounds} rounds", min(times), "s", at_most=READ_S))
    return figures


def size(path: Path) -> int:
    """Bytes of the database by SQLite's page count, whether the pages are in the main file or the WAL."""
    import sqlite3

    with sqlite3.connect(path) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        return int(pages * connection.execute("PRAGMA page_size").fetchone()[0])


def stand_ins(rounds: int) -> dict[str, Callable[..., Changes]]:
    """Nodes that return changes of realistic size."""
    candidate = Candidate(adapter="a" * 16, prompt="b" * 16)
    numbers = {f"number_{i}": i / 7 for i in range(18)}
    signal = {kind: {f"evidence_{i}": i / 7 for i in range(9)} for kind in ("lora", "textgrad")}
    measured = Measured(
        key="c" * 16,
        reward=0.5,
        potential=0.6,
        all_checks=0.4,
        checks={"fact": 0.5, "style": 0.4},
        loss_nats=1.5,
        failures=18,
        train_reward=0.5,
        wall_s=3.2,
        generated_tokens=500,
        cached_replies=12,
        flop=1e12,
    )
    proposal = Proposal(
        kind="lora",
        candidate=candidate,
        error=None,
        wall_s=9.5,
        trained_tokens=40_000,
        generated_tokens=0,
        flop=1e12,
        editor={},
        epoch_losses_nats=[i / 7 for i in range(8)],
        grad_norms=[i / 7 for i in range(8)],
        new_rows=0,
        note="60 rows (60 remade), 60 steps",
    )
    decision = Decision(
        action="lora",
        reason="8 of 8 failures need content; LoRA still progresses; weights.",
        evidence=dict(numbers),
        demand={"content": 1.0, "form": 0.0},
        material="material/1-c.json",
    )
    record = RoundRecord(
        round=1,
        action="lora",
        reason=decision["reason"],
        kept=True,
        verdict="Kept: reward +0.083.",
        error=None,
        candidate=candidate,
        evaluation="c" * 16,
        reward_before=0.4,
        reward_after=0.5,
        potential_before=0.5,
        potential_after=0.6,
        numbers=dict(numbers),
        demand=dict(decision["demand"]),
        signal=signal,
        wall_s=12.7,
        trained_tokens=40_000,
        generated_tokens=500,
        flop=2e12,
        editor={},
        epoch_losses_nats=proposal["epoch_losses_nats"],
        grad_norms=proposal["grad_norms"],
        new_rows=0,
        note=proposal["note"],
    )

    def monitor(state: Any) -> Changes:
        if state["proposal"] is None:
            return {"start_measured": measured, "kept_measured": measured}
        done = state["round"] + 1
        return {
            "round": done,
            "proposal": None,
            "measured": None,
            "decision": None,
            "signal": signal,
            "rounds": [{**record, "round": done}],
            "stop": "enough" if done >= rounds else "",
        }

    def node(name: str, changes: Changes) -> Callable[..., Changes]:
        def stand_in(state: Any) -> Changes:
            return changes

        stand_in.__name__ = name
        return stand_in

    return {
        "evaluate": node("evaluate", {"measured": measured, "wall_s": 3.2}),
        "monitor": monitor,
        "classify": node("classify", {"decision": decision}),
        "lora_update": node("lora_update", {"proposal": proposal, "wall_s": 9.5}),
        "finish": node("finish", {"status": "finished", "wall_s": 1.0}),
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
