"""The router against fixed orders and ablations: task x strategy x seed, at equal compute.

    make bench-strategies                     (hours on two cores; an interrupted matrix continues)
    make bench-strategies DATA=path/to/data   (with GSM8K, BIG-Bench Hard and IFEval from that folder)

Finished cells are in tests/benchmarks/records/strategies.jsonl and are not run again. `--table` runs nothing and prints
the tables. Each cell is an ordinary run: `nslora show build/bench/strategies/runs/TASK/STRATEGY/SEED`.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from strategy_cells import STRATEGIES, Cell, cells_of, finished, groups_of, import_all, run_in_child
from strategy_tables import publish_all
from strategy_tasks import BenchTask, bench_tasks

from nslora.tools.policies.environment import default_threads, prepare_environment


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with gsm8k/, bbh/ and ifeval/")
    parser.add_argument("--tasks", nargs="*", help="only these")
    parser.add_argument("--strategies", nargs="*", choices=STRATEGIES, help="only these")
    parser.add_argument("--seeds", type=int, help="only the first N seeds")
    parser.add_argument("--workers", type=int, default=None, help="cells at once, one thread each (default: cores)")
    parser.add_argument("--minutes", type=float, help="start no cell after this many minutes")
    parser.add_argument("--table", action="store_true", help="run nothing; print the tables from the records")
    return parser.parse_args()


def wanted(options: argparse.Namespace, tasks: dict[str, BenchTask]) -> list[Cell]:
    """The cells that the options select."""
    return [
        cell
        for cell in cells_of(tasks)
        if (not options.tasks or cell.task in options.tasks)
        and (not options.strategies or cell.strategy in options.strategies)
        and (options.seeds is None or cell.seed < options.seeds)
    ]


def run_all(cells: Sequence[Cell], tasks: dict[str, BenchTask], workers: int, minutes: float | None) -> list[str]:
    """Run the cells. Returns one line per failed cell. Ctrl-C ends the running cells."""
    groups: SimpleQueue[list[Cell]] = SimpleQueue()
    for group in groups_of(cells):
        groups.put(group)
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    failed: list[str] = []
    forking = threading.Lock()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, speed_estimate_period=3600) as shown:
        bar = shown.add_task("cells", total=len(cells))

        def work() -> None:
            while True:
                try:
                    group = groups.get_nowait()
                except Empty:
                    return
                for cell in group:
                    if time.monotonic() > until:
                        return
                    shown.update(bar, description=f"{cell.task}, {cell.strategy}, seed {cell.seed}")
                    with forking:  # filelock refuses a fork while another thread forks
                        child = run_in_child(cell, tasks[cell.task])
                    child.join()
                    if child.exitcode:
                        failed.append(f"{cell}: exit status {child.exitcode}")
                    shown.advance(bar)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return failed


def main() -> int:
    options = arguments()
    tasks = bench_tasks(options.data)
    if unknown := set(options.tasks or ()) - tasks.keys():
        sys.exit(f"No task {', '.join(sorted(unknown))}; known: {', '.join(tasks)} (public sets: name --data).")
    failed: list[str] = []
    if not options.table:
        done = finished()
        todo = [cell for cell in wanted(options, tasks) if cell not in done]
        workers = options.workers or default_threads()
        # A cell computes on one thread, and a process with a thread pool cannot be forked.
        os.environ["OMP_NUM_THREADS"] = "1"
        prepare_environment()
        import_all()
        failed = run_all(todo, tasks, workers, options.minutes)
    for line in failed:
        print(line, file=sys.stderr)
    return 0 if publish_all(list(finished().values())) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
