"""Decision trees on real models: what each sequence of updates brings, whatever a router would choose.

    make bench-decisions                          (trees of depth 3 over the embedded model; hours on one core)
    make bench-decisions DATA=path/to/data        (with BIG-Bench Hard, GSM8K and IFEval from that folder)

A line a node in tests/benchmarks/records/decisions.jsonl, written as the nodes end. What is on record is not run again,
and a run that was interrupted goes on. At its end, and with `--table` at once, the tables and the figure are drawn anew
from the records.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import learnt_router
from decision_probes import Probes
from decision_tables import SEVERAL, draw, forks_of, page
from decision_trees import paths_to
from fetch_models import model_file
from form import README, in_readme
from langgraph.runtime import RunControl
from platformdirs import user_cache_path
from signal_tables import signal_lines
from strategy_cells import RECORDS as STRATEGY_RECORDS
from strategy_tasks import BenchTask, bench_tasks, public_rows, written
from validation_runs import EMBEDDED

from nslora.graph.cli.stop_signals import stopping
from nslora.graph.sweep.jobs import Executor, Job, LocalExecutor, ended
from nslora.router import read_trees
from nslora.tools.files import append_jsonl, read_jsonl
from nslora.tools.policies.environment import prepare_environment

HERE = Path(__file__).parent
RECORDS = HERE / "records" / "decisions.jsonl"
PICTURE = RECORDS.with_suffix(".svg")
ROWS = {"validation": 60, "test": 60}
FIRST = (
    "form-only",
    "handbook-json",
    "content-only",
    "styled-references",
    "banking12",
    "nothing-possible",
    "handbook-label",
)
BBH = ("navigate", "dyck_languages", "hyperbaton")
IDENTITY = ("model", "editor", "task", "seed")


def decision_tasks(data: Path | None) -> dict[str, BenchTask]:
    """The tasks by name, the cheap ones first; public sets of which this repository holds no rows need `data`."""
    known = bench_tasks(data)
    folders = {name: BenchTask(name, "", 0.0, 1, in_folder(name)) for name in ("banking12", "restaurant8k")}
    found = {name: (known | folders)[name] for name in FIRST} | folders
    if data is not None:
        question = {"question": "question", "reference": "answer"}
        for name in BBH:
            rows = public_rows(data, f"bbh/{name}", (60, 60, 60), question)
            source = written(rows, [{"name": "answer", "check": "exact_match"}])
            found[f"bbh-{name.replace('_', '-')}"] = BenchTask(name, "", 0.0, 1, source)
        found |= {name: known[name] for name in ("bbh-object-counting", "ifeval", "gsm8k")}
    return found


def in_folder(name: str) -> Any:
    return lambda _: (str(HERE / "data" / name), {"rows": ROWS})


@dataclass(frozen=True)
class Tree:
    """The updates of one task, seed, model and editor."""

    model: str
    editor: str
    task: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return re.sub(r"[^\w.]+", "-", "-".join((self.task, self.model, self.editor))) + f"-{self.seed}"

    def jobs(
        self, task: BenchTask, depth: int, folder: Path, known: Mapping[str, str], probes: Mapping[str, int]
    ) -> list[Job]:
        """A job for each node that is not on record. known: path -> why it is a leaf, of the nodes on record."""
        source, options = task.source(folder / "tasks" / self.task)
        settings = {
            "model": self.model if self.model == EMBEDDED else str(model_file(self.model)),
            "editor": editor_named(self.editor),
            "seed": self.seed,
            "device": {"threads": 1, "device": "cpu"},
        }
        arguments = {"tree": str(folder / self.name), "source": source, "options": dict(options), "settings": settings}
        arguments["probes"] = dict(probes)
        return [
            Job(
                f"{self.name} {path or 'base'}",
                "decision_trees:grow",
                {**arguments, "path": path},
                folder / self.name / "logs" / f"{path.replace('/', '-') or 'base'}.txt",
            )
            for path in paths_to(depth)
            if path not in known and not any(known.get(above) for above in parents(path))
        ]


def editor_named(name: str) -> str:
    """`rules` as it is; a name in models.toml as the GGUF file that llama.cpp serves."""
    return name if name == "rules" else f"gguf:{model_file(name)}"


def parents(path: str) -> list[str]:
    """The paths above one, the base included."""
    steps = path.split("/") if path else []
    return ["/".join(steps[:length]) for length in range(len(steps))]


def on_record(records: Path) -> dict[Tree, dict[str, str]]:
    """Path -> why it is a leaf, "" if it is none, of the nodes of each tree."""
    found: dict[Tree, dict[str, str]] = {}
    for node in read_jsonl(records):
        found.setdefault(Tree(*(node[name] for name in IDENTITY)), {})[node["path"]] = node["leaf"]
    return found


def grow_all(
    trees: Mapping[Tree, list[Job]], executor: Executor, records: Path, control: RunControl, workers: int = 1
) -> list[str]:
    """Grow the trees, and record each node as it ends. Returns a line for each node that failed."""
    of_log = {job.log: tree for tree, jobs in trees.items() for job in jobs}
    failed = []
    for event in ended(executor.run(list(trees.values()), control), len(of_log), workers, print):
        if event.status == "failed":
            failed.append(f"{event.job.name}: {event.error}")
        elif event.result:
            identity = {name: getattr(of_log[event.job.log], name) for name in IDENTITY}
            append_jsonl(records, {**identity, "path": event.job.arguments["path"], **event.result})
    return failed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with gsm8k/, bbh/ and ifeval/")
    parser.add_argument("--tasks", nargs="*", help="only these, in this order")
    parser.add_argument("--model", default=EMBEDDED, help="or a name in models.toml")
    parser.add_argument("--editor", default="rules", help="or a name in models.toml")
    parser.add_argument("--depth", type=int, default=3, help="most updates on a path")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    for each in fields(Probes):
        words = f"rows of the probe `{each.name}`, 0 for none (see decision_probes.py)"
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=int, default=each.default, help=words)
    parser.add_argument("--workers", type=int, default=1, help="nodes at once, one thread each")
    parser.add_argument("--runs", type=Path, default=user_cache_path("nslora") / "decisions", help="folder of the runs")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--table", action="store_true", help="run nothing; draw tables and figure from the records")
    parser.add_argument("--signal", action="store_true", help="run nothing; does the monitoring signal pay?")
    return parser.parse_args()


def wanted(options: argparse.Namespace, tasks: Mapping[str, BenchTask]) -> Iterable[Tree]:
    """The trees that the options select, seed by seed."""
    for seed in options.seeds:
        for task in options.tasks or tasks:
            yield Tree(options.model, options.editor, task, seed)


def publish(records: Path) -> None:
    """Write the tables into README.md, and draw the figure; of other records than the committed ones, print them."""
    if not read_trees(records):
        print(f"No whole tree is on record in {records} yet.")
        return
    lines = readme_lines(records)
    print("\n".join(lines))
    if records == RECORDS:
        README.write_text(in_readme("bench-decisions", lines), encoding="utf-8")
        trees = read_trees(records, partial=True)
        draw(forks_of(trees), PICTURE)
        if len({tree.task for tree in trees}) >= SEVERAL:
            learnt_router.write(learnt_router.fit(trees), trees)


def readme_lines(records: Path) -> list[str]:
    """The block in README.md: what has run, then the tables and the figure."""
    rows, trees, partial = read_jsonl(records), read_trees(records), read_trees(records, partial=True)
    dates, codes = (sorted({row[name] for row in rows}) for name in ("date", "code"))
    return [
        f"{len(rows)} nodes so far, {dates[0]} to {dates[-1]}, code {', '.join(codes)}: "
        + "; ".join(f"{tree.task} ({tree.model}, seed {tree.seed}): {len(tree.nodes)} nodes" for tree in partial)
        + ". What is not named here has not run.",
        "",
        *page(trees, partial),
        "",
        f"![what weights bring beyond an edit, against the share that needs content](records/{PICTURE.name})",
    ]


def main() -> int:
    options = arguments()
    if options.signal:
        print("\n".join(signal_lines(read_jsonl(STRATEGY_RECORDS))))
        return 0
    if options.table:
        publish(options.records)
        return 0
    tasks = decision_tasks(options.data)
    if unknown := set(options.tasks or ()) - tasks.keys():
        sys.exit(f"No task {', '.join(sorted(unknown))}; known: {', '.join(tasks)} (public sets: name --data).")
    os.environ["OMP_NUM_THREADS"] = str(options.workers)  # one thread for each
    prepare_environment()
    known, folder = on_record(options.records), options.runs.absolute()
    probes = {each.name: getattr(options, each.name) for each in fields(Probes)}
    trees = {
        tree: tree.jobs(tasks[tree.task], options.depth, folder, known.get(tree, {}), probes)
        for tree in wanted(options, tasks)
    }
    control = RunControl()
    with stopping(control, print, lambda: None):
        failed = grow_all(trees, LocalExecutor(options.workers), options.records, control, options.workers)
    for line in failed:
        print(line, file=sys.stderr)
    publish(options.records)
    return 1 if failed or control.drain_requested else 0


if __name__ == "__main__":
    sys.exit(main())
