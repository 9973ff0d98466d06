"""nslora against other projects: same tasks, model, compute, test rows and reward, each by its own recipe.

    make bench-peers                                        (hours on one core; recorded cells are not run again)
    .venv/bin/python tests/benchmarks/bench_peers.py --table

Records: tests/benchmarks/records/peers.jsonl, one line per task, peer and seed. A peer that needs a strong editor model
or another server is run as far as it gets without them, and is listed separately, without a score.
"""

import argparse
import dataclasses
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peers_dspy
import peers_recipes
from form import commit, machine
from peers_meter import Batcher, Meter
from peers_recipes import Bench, Outcome
from peers_tables import OURS, publish_all
from strategy_cells import RECORDS as STRATEGY_RECORDS
from strategy_cells import ROUTER, Cell, prepare, record_of
from strategy_tasks import BenchTask, bench_tasks

from nslora.graph.runs.run import Run
from nslora.tools.files import append_jsonl, read_jsonl
from nslora.tools.inference.flops import FlopRates
from nslora.tools.policies.environment import prepare_environment
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.workspace.settings import RunSettings

FOLDER = Path("build/bench/peers")
RECORDS = Path("tests/benchmarks/records/peers.jsonl")
TASKS = ("handbook-json", "form-only", "content-only", "styled-references")
MODEL = str(RunSettings.model_fields["model"].default)
PEERS: Mapping[str, Callable[[Bench], Outcome]] = {
    "base": peers_recipes.base,
    "TRL LoRA SFT": peers_recipes.trl_sft,
    "TRL LoRA SFT, epochs to the cap": peers_recipes.trl_sft_to_the_cap,
    "TRL LoRA SFT, rate by validation": peers_recipes.trl_sft_best_rate,
    "DSPy BootstrapFewShotWithRandomSearch": peers_dspy.random_search,
    "DSPy MIPROv2": peers_dspy.mipro,
    "TextGrad, rule editor": peers_recipes.textgrad_rules,
    "TextGrad, the model as editor": peers_recipes.textgrad_policy,
    "DSPy BetterTogether": peers_dspy.better_together,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=TASKS, help=f"default: {', '.join(TASKS)}")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/, bbh/ and ifeval/")
    parser.add_argument("--peers", nargs="*", choices=[OURS, *PEERS], help="only these")
    parser.add_argument("--seeds", type=int, default=1, help="the first N seeds")
    parser.add_argument("--model", default=MODEL, help="another model: name a file for its records with --records")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--table", action="store_true", help="run nothing; print the tables from the records")
    return parser.parse_args()


def run_peer(peer: str, task: BenchTask, seed: int, model: str, records: Path) -> None:
    """Run one peer in its own process and record it."""
    started = time.monotonic()
    folder = FOLDER / "work" / task.name / str(seed) / str(os.getpid())
    policy = LocalPolicy.load(model, adapters=folder / "adapters", device=DeviceSettings(threads=1, device="cpu"))
    meter = Meter(FlopRates.of(policy.describe()), task.tflop)
    batcher = Batcher(policy, meter)
    bench = Bench(task.load(FOLDER / "tasks"), seed, model, policy, meter, batcher, folder)
    try:
        outcome = PEERS[peer](bench)
        scores = [bench.task.reward(row, reply) for row, reply in zip(bench.task.test, outcome.replies, strict=True)]
        names = [check.name for check in bench.task.reward.checks]
        append_jsonl(
            records,
            {
                "task": task.name,
                "peer": peer,
                "seed": seed,
                "planted": task.planted,
                "cap_tflop": task.tflop,
                "result": {
                    "passed": "".join(str(int(score.passed)) for score in scores),
                    "rewards": [round(score.value, 4) for score in scores],
                    "checks": {
                        name: round(sum(score.checks[name] for score in scores) / len(scores), 4) for name in names
                    },
                },
                **{key: value for key, value in dataclasses.asdict(outcome).items() if key != "replies"},
                "cost": meter.cost(),
                **circumstances(started),
            },
        )
    finally:
        batcher.close()
        shutil.rmtree(folder, ignore_errors=True)


def run_ours(task: BenchTask, seed: int, model: str, records: Path) -> None:
    """nslora's own row: copied from bench-strategies if that benchmark has run the cell, else from a run."""
    cell = Cell(task.name, ROUTER, seed)
    known = (
        [
            each
            for each in read_jsonl(STRATEGY_RECORDS)
            if (each["task"], each["strategy"], each["seed"]) == (cell.task, cell.strategy, cell.seed)
        ]
        if STRATEGY_RECORDS.exists() and model == MODEL
        else []
    )
    started = time.monotonic()
    if known:
        found = {"machine": {}, **known[0], "from": "bench-strategies"}
    else:
        folder = FOLDER / "runs" / task.name / str(seed)
        shutil.rmtree(folder, ignore_errors=True)
        run = Run.create(
            folder,
            task=task.load(FOLDER / "tasks"),
            seed=seed,
            max_rounds=task.rounds,
            model=model,
            max_tflop=task.tflop,
            strategy=ROUTER,
            device={"threads": 1, "device": "cpu"},
        )
        report = run.adapt().report
        scores = read_jsonl(folder / "result" / "test.jsonl")
        found = {**record_of(cell, task, report, scores, 0.0), **circumstances(started), "from": "bench-peers"}
    append_jsonl(records, our_record(found))


def our_record(found: Mapping[str, Any]) -> dict[str, Any]:
    """A record of bench-strategies, converted to the format of peers.jsonl."""
    kept = {each["action"] for each in found["rounds"] if each["kept"]} if found["changed"] else set()
    parts = [
        words
        for action, words in (("lora", "a LoRA adapter (PEFT)"), ("textgrad", "a prompt document"))
        if action in kept
    ]
    left = " and ".join(parts) or "the model as it was"
    names = ("tflop", "editor_calls", "editor_tokens", "trained_tokens", "generated_tokens")
    return {
        **{
            name: found[name]
            for name in ("task", "seed", "planted", "cap_tflop", "result", "wall_s", "commit", "date", "machine")
        },
        "peer": OURS,
        "left_with": f"{left}, with a report of every round",
        "needs": "",
        "breaks": [],
        "settings": {
            "strategy": ROUTER,
            "from": found["from"],
            "stop": found["stop"],
            "rounds": [each["action"] if each["kept"] else f"({each['action']})" for each in found["rounds"]],
        },
        "cost": {name: found["cost"][name] for name in names if name in found["cost"]},
    }


def circumstances(started: float) -> dict[str, Any]:
    return {
        "wall_s": round(time.monotonic() - started, 1),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def in_child(peer: str, task: BenchTask, seed: int, options: argparse.Namespace) -> int:
    """Run a cell in a forked process whose output goes to a log. Returns its exit status."""
    log = FOLDER / "logs" / f"{task.name}-{seed}-{peer.replace(' ', '_').replace(',', '')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            if peer == OURS:
                run_ours(task, seed, options.model, options.records)
            else:
                run_peer(peer, task, seed, options.model, options.records)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    if child.exitcode:
        print(f"{task.name}, {peer}, seed {seed}: exit status {child.exitcode}, see {log}", file=sys.stderr)
    return child.exitcode or 0


def main() -> int:
    options = arguments()
    if options.model != MODEL and options.records == RECORDS:
        sys.exit("The published records hold one model only: for another model, name a file with --records.")
    tasks = bench_tasks(options.data)
    if unknown := set(options.tasks) - tasks.keys():
        sys.exit(f"No task {', '.join(sorted(unknown))}; known: {', '.join(tasks)} (public sets: name --data).")
    failed = 0
    if not options.table:
        done = on_record(options)
        todo = [
            (peer, tasks[name], seed)
            for seed in range(options.seeds)
            for name in options.tasks
            for peer in options.peers or [OURS, *PEERS]
            if (name, peer, seed) not in done
        ]
        os.environ["OMP_NUM_THREADS"] = "1"  # a process with a thread pool cannot be forked
        prepare_environment()
        if todo:
            prepare()
        for number, (peer, task, seed) in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {datetime.now(UTC):%H:%M:%S} {task.name}, {peer}, seed {seed}", flush=True)
            if (task.name, peer, seed) not in on_record(options):  # another process may have finished it
                failed += bool(in_child(peer, task, seed, options))
    records = options.records
    held = publish_all(records_of(records), records.with_suffix(".md"), readme=records == RECORDS)
    return 0 if held and not failed else 1


def on_record(options: argparse.Namespace) -> set[tuple[str, str, int]]:
    """The finished cells."""
    return {(each["task"], each["peer"], each["seed"]) for each in records_of(options.records)}


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records, grouped by task, with the peers in one order."""
    rows = read_jsonl(path) if path.exists() else []
    order = [OURS, *PEERS]
    return sorted(
        rows,
        key=lambda each: (
            list(dict.fromkeys(row["task"] for row in rows)).index(each["task"]),
            order.index(each["peer"]),
            each["seed"],
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
