"""The router against fixed orders and ablations: task x strategy x seed, at equal compute.

    make bench-strategies                     (hours on two cores; an interrupted matrix continues)
    make bench-strategies DATA=path/to/data   (with GSM8K, BIG-Bench Hard and IFEval from that folder)

Finished cells are in tests/benchmarks/records/strategies.jsonl and are not run again. `--table` runs nothing and prints
the tables. Each cell is an ordinary run: `nslora show build/bench/strategies/runs/TASK/STRATEGY/SEED`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import strategy_cells
from langgraph.runtime import RunControl
from strategy_cells import STRATEGIES, Cell, cells_of, finished, groups_of, job_of
from strategy_tables import publish_all
from strategy_tasks import BenchTask, bench_tasks

from nslora.graph.cli.stop_signals import stopping
from nslora.graph.sweep.jobs import Executor, LocalExecutor, ended
from nslora.tools.files import append_jsonl
from nslora.tools.policies.environment import default_threads, prepare_environment


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with gsm8k/, bbh/ and ifeval/")
    parser.add_argument("--tasks", nargs="*", help="only these")
    parser.add_argument("--strategies", nargs="*", choices=STRATEGIES, help="only these")
    parser.add_argument("--seeds", type=int, help="only the first N seeds")
    parser.add_argument("--workers", type=int, default=None, help="cells at once, one thread each (default: cores)")
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


def run_all(
    cells: Sequence[Cell], data: Path | None, executor: Executor, control: RunControl, workers: int
) -> list[str]:
    """Run the cells, and record each as it ends. Returns one line per failed cell."""
    groups = [[job_of(cell, data) for cell in group] for group in groups_of(cells)]
    failed: list[str] = []
    for event in ended(executor.run(groups, control), len(cells), workers, print):
        if event.status == "failed":
            failed.append(f"{event.job.name}: {event.error}")
        else:
            append_jsonl(strategy_cells.RECORDS, event.result)
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
        os.environ["OMP_NUM_THREADS"] = str(workers)  # one thread for each
        prepare_environment()
        control = RunControl()
        with stopping(control, print):
            failed = run_all(todo, options.data, LocalExecutor(workers), control, workers)
    for line in failed:
        print(line, file=sys.stderr)
    return 0 if publish_all(list(finished().values())) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
