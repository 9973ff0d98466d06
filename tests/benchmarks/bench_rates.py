"""Where the default learning rate and the default epochs hold: one training job by each setting, on three models.

    make bench-rates                  (about seven hours on two cores; an interrupted benchmark continues)

A cell is one LoRA update on the references of a task, with a setting and a seed; its reward is that of all validation
rows. The best of four rates, and the best of three numbers of epochs, is chosen on seed 0 and compared with the default
on seed 1, question by question; intervals are 95 % bootstraps over questions. The test split stays unread. Finished
cells lie in records/rates.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fetch_models import fetch
from form import README, Figure, commit, in_readme, machine, publish
from validation_runs import EMBEDDED, measured, task_of

from nslora.tools.evaluation.paired_tests import bootstrap_interval, mean
from nslora.tools.files import append_jsonl, read_jsonl

FOLDER, RECORDS = Path("build/bench/rates"), Path(__file__).parent / "records" / "rates.jsonl"
DEFAULT = "default"
RATES = {rate: {"learning_rate": float(rate)} for rate in ("5e-4", "1e-3", "2e-3", "4e-3")}
EPOCHS = {"4 epochs": {"epochs": 4}, DEFAULT: {}, "16 epochs": {"epochs": 16}}
SETTINGS: Mapping[str, Mapping[str, Any]] = {DEFAULT: {}, **RATES, **EPOCHS}
CHOOSING, COMPARING = 0, 1
MODELS: Mapping[str, tuple[str, ...]] = {
    EMBEDDED: ("handbook-plain", "banking12"),
    "gemma-270m": ("handbook-plain", "banking12"),
    "qwen-0.5b": ("banking12", "restaurant8k"),
}
THE_SAME = {(EMBEDDED, "4e-3"): DEFAULT}  # by the default's formula


@dataclass(frozen=True)
class Cell:
    """One training job."""

    model: str
    task: str
    setting: str
    seed: int


def cells() -> Iterator[Cell]:
    for model, tasks in MODELS.items():
        for task in tasks:
            for seed in (CHOOSING, COMPARING):
                for setting in SETTINGS:
                    if (model, setting) not in THE_SAME:
                        yield Cell(model, task, setting, seed)


def finished() -> dict[Cell, dict[str, Any]]:
    return {Cell(each["model"], each["task"], each["setting"], each["seed"]): each for each in read_jsonl(RECORDS)}


def run_cell(cell: Cell) -> dict[str, Any]:
    began = time.monotonic()
    after = measured(
        FOLDER / cell.model / cell.task / f"{cell.setting.replace(' ', '-')}-{cell.seed}",
        task_of(cell.task),
        cell.model,
        max_rounds=1,
        strategy="lora",
        seed=cell.seed,
        lora=dict(SETTINGS[cell.setting]),
    )
    state = after.run.state()
    assert state is not None
    (round_one,) = state["rounds"]
    return {
        **asdict(cell),
        "rewards": after.rewards,  # of the base if the job failed, since that is what a run goes on with
        "error": round_one["error"],
        "trained_tokens": round_one["trained_tokens"],
        "seconds": round(time.monotonic() - began, 1),
        "processor": machine()["processor"],
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def reward(record: Mapping[str, Any]) -> float:
    return mean(list(record["rewards"].values()))


def compared() -> tuple[list[str], list[Figure]]:
    """The table and the goals, of the tasks whose cells are all there."""
    records, lines, figures = finished(), [], []
    lines.append(f"| model | task | {' | '.join(SETTINGS)} | chosen on seed 0 | default less chosen, seed 1 | 95 % |")
    lines.append("| --- " * (len(SETTINGS) + 5) + "|")
    for model, tasks in MODELS.items():
        for task in tasks:
            every = {
                (setting, seed): records.get(Cell(model, task, THE_SAME.get((model, setting), setting), seed))
                for setting in SETTINGS
                for seed in (CHOOSING, COMPARING)
            }
            found = {key: record for key, record in every.items() if record is not None}
            if len(found) < len(every):
                continue
            values = " | ".join(f"{reward(found[setting, COMPARING]):.3f}" for setting in SETTINGS)
            for what, choice in (("rate", RATES), ("epochs", EPOCHS)):
                best = max(choice, key=lambda setting: reward(found[setting, CHOOSING]))
                ours, theirs = found[DEFAULT, COMPARING]["rewards"], found[best, COMPARING]["rewards"]
                gains = [ours[name] - theirs[name] for name in sorted(ours)]
                low, high = bootstrap_interval(gains)
                lines.append(
                    f"| {model} | {task} | {values} | {what}: {best} | {mean(gains):+.3f} | [{low:+.3f}, {high:+.3f}] |"
                )
                figures.append(
                    Figure(
                        f"{model}, {task}, {what}: default less {best} [{low:+.3f}, {high:+.3f}]",
                        mean(gains),
                        "reward",
                        "interval not below 0",
                        high >= 0,
                    )
                )
    return lines, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="run nothing: write the table from the records")
    parser.add_argument("--model", choices=MODELS, action="append", help="only this model")
    parser.add_argument("--agree", action="store_true", help="agree to the terms of gemma-270m")
    options = parser.parse_args()
    wanted = [cell for cell in cells() if cell.model in (options.model or MODELS)]
    left = [] if options.table else [cell for cell in wanted if cell not in finished()]
    for name in sorted({cell.model for cell in left} - {EMBEDDED}):
        fetch(name, agreed=options.agree)
    for number, cell in enumerate(left, 1):
        record = run_cell(cell)
        append_jsonl(RECORDS, record)
        print(
            f"{number} of {len(left)}: {cell.model}, {cell.task}, {cell.setting}, seed {cell.seed}: "
            f"{reward(record):.3f} ({record['seconds']:.0f} s) {record['error'] or ''}",
            flush=True,
        )
    lines, figures = compared()
    README.write_text(in_readme("bench-rates", lines), encoding="utf-8")
    sys.exit(0 if publish("rates", figures, "the default learning rate and epochs on other models") else 1)


if __name__ == "__main__":
    main()
