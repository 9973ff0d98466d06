"""An agent adapted by prompts, by weights and by the loop, at equal compute, on two tasks of BIG-Bench Hard.

    make bench-agents DATA=path/to/data   (about 12 hours on two cores; what is done is kept)

An arithmetic agent with a calculator (multistep_arithmetic_two, three seeds) and a date agent that can add days
(date_understanding, one seed), both LangChain's `create_agent` over Qwen2.5-Coder-0.5B-Instruct, at most 3 calls of 48
tokens; 30 train, 30 validation, 50 test rows. Each cell is an ordinary run of a sweep: `nslora show
build/bench/agents/runs/NAME`. `--first` runs the first cell alone; `--table` runs nothing.
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fetch_models import fetch
from form import Figure, figure, in_readme, publish

from nslora.tools.evaluation.paired_tests import bootstrap_interval
from nslora.tools.files import read_jsonl, write_text

FOLDER = Path("build/bench/agents")
TASKS = Path(__file__).parent / "data" / "agents"
SETS = {"arithmetic": ("multistep_arithmetic_two", 3), "date": ("date_understanding", 1)}  # and how many seeds
# The loop against each kind of update alone; the base is the start of each.
STRATEGIES = {"prompt only": "textgrad", "weights only": "lora", "loop": "neurosymbolic"}
WANTED_GAIN = 0.15  # over the better single kind, on one of the tasks
TFLOP = 600.0  # of each cell until the end of its last round, by formula
SETTINGS: Mapping[str, Any] = {
    "max_rounds": 4,
    "max_tflop": TFLOP,
    "train_sample": 24,
    "remade_rows": 15,
    "lora": {"epochs": 3},
    "device": {"device": "cpu"},
}


def cells(model: str, editor: str, data: Path) -> list[dict[str, Any]]:
    """All cells, seed by seed, in the form of a sweep."""
    found = []
    for seed in range(max(seeds for _, seeds in SETS.values())):
        for name, (rows, seeds) in SETS.items():
            files = {
                split: str((data / "bbh" / f"{rows}.{split}.jsonl").absolute())
                for split in ("train", "validation", "test")
            }
            task = {"task": str(TASKS / f"{name}.yaml"), "data": files}
            for variant, strategy in STRATEGIES.items() if seed < seeds else ():
                cell = {"task": task, "variant": variant, "strategy": strategy, "seed": seed}
                found.append({**cell, "model": model, "editor": editor, **SETTINGS})
    return found


def lines_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[Figure]]:
    """The table, a line for each task and way, means over seeds, and the figures with the goal."""
    by: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["status"] == "finished":
            by[row["task"]][row["variant"]].append(row)
    table, figures = [["task", "way", "seeds", "test reward", "95 % interval", "TFLOP"]], list[Figure]()
    for task, ways in by.items():
        start = next(iter(ways.values()))
        base = [each["base"]["reward"] for each in start]
        table.append([task, "base", str(len(base)), f"{fmean(base):.3f}", _interval(start, "base"), "0"])
        rewards = {way: fmean(each["result"]["reward"] for each in found) for way, found in ways.items()}
        for way, found in ways.items():
            tflop = fmean(each["cost"]["tflop"] for each in found)
            table.append(
                [task, way, str(len(found)), f"{rewards[way]:.3f}", _interval(found, "result"), f"{tflop:.0f}"]
            )
        if set(STRATEGIES) <= rewards.keys():
            better = max(rewards["prompt only"], rewards["weights only"])
            figures.append(
                figure(
                    f"{task}: the loop over the better single kind",
                    rewards["loop"] - better,
                    "test reward",
                    at_least=WANTED_GAIN,
                )
            )
    return table, figures


def _interval(rows: Sequence[Mapping[str, Any]], which: str) -> str:
    """Over test rows, all seeds together."""
    scores = [
        float(line["reward"])
        for row in rows
        for line in read_jsonl(FOLDER / row["folder"] / "result" / "test.jsonl")
        if line["candidate"] == which
    ]
    low, high = bootstrap_interval(scores, bounds=(0.0, 1.0)) if scores else (0.0, 1.0)
    return f"{low:.2f} to {high:.2f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with bbh/")
    parser.add_argument("--model", help="another model than Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--editor", help="another editor than Qwen2.5-Coder-1.5B-Instruct (llama.cpp)")
    parser.add_argument("--first", action="store_true", help="run the first cell alone")
    parser.add_argument("--table", action="store_true", help="run nothing; print the table from the record")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if not options.table:
        if options.data is None or not (options.data / "bbh").is_dir():
            sys.exit("Name the folder with bbh/ in it: make bench-agents DATA=path/to/data.")
        os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
        from nslora.graph.sweep.sweep import sweep

        model = options.model or str(fetch("qwen-0.5b"))
        editor = options.editor or f"gguf:{fetch('qwen-1.5b')}"
        wanted = cells(model, editor, options.data)
        result = sweep(wanted[:1] if options.first else wanted, folder=FOLDER, notify=print)
        for line in result.failed:
            print(line, file=sys.stderr)
    record = {row["key"]: row for row in read_jsonl(FOLDER / "sweep.jsonl")}
    table, figures = lines_of(list(record.values()))
    for line in table:
        print(" | ".join(line))
    if not figures:
        return 0
    marks = [f"| {' | '.join(line)} |" for line in table]
    readme = Path(__file__).parent / "README.md"
    write_text(readme, in_readme("bench-agents", [marks[0], "| --- " * len(table[0]) + "|", *marks[1:]]))
    return 0 if publish("agents", figures) else 1


if __name__ == "__main__":
    sys.exit(main())
