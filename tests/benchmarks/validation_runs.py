"""Runs that end after their last evaluation on validation, so that the test split stays unread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetch_models import model_file

from nslora.graph.runs.run import Run
from nslora.tools.evaluation.records import Evaluation
from nslora.tools.tasks.task import Task, load_task

HERE = Path(__file__).parent
EMBEDDED = "SmolLM2-135M-Instruct"
TASKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "handbook-plain": ("handbook", {"style": "plain"}),
    "handbook-label": ("handbook", {"style": "label"}),
    "banking12": (str(HERE / "data" / "banking12"), {}),
    "restaurant8k": (str(HERE / "data" / "restaurant8k"), {}),
}


def task_of(name: str) -> Task:
    source, options = TASKS[name]
    return load_task(source, **options)


@dataclass(frozen=True)
class Measured:
    """A run and its newest evaluation."""

    run: Run
    evaluation: Evaluation

    @property
    def rewards(self) -> dict[str, float]:
        """Reward of each validation row, by its id."""
        return {name: round(row.value, 4) for name, row in sorted(self.evaluation.of("validation").items())}


def measured(folder: Path, task: Task, policy: str, *, max_rounds: int, **settings: Any) -> Measured:
    """Run up to the end of the last round; the node `finish` is not run.

    Args:
        folder: Of the run; an earlier one there is replaced.
        task: Its validation split is measured.
        policy: EMBEDDED, or a name in models.toml.
        max_rounds: 0 measures the start alone.
        **settings: Fields of RunSettings.
    """
    run = Run.create(
        folder,
        task=task,
        model=EMBEDDED if policy == EMBEDDED else str(model_file(policy)),
        max_rounds=max_rounds,
        overwrite=True,
        check_editor=False,
        device={"device": "cpu", "threads": 1},
        **settings,
    )
    key = ""
    for _, part in run.stream(["updates"]):
        changes = part.get("evaluate") or {}
        key = changes["measured"]["key"] if changes.get("measured") else key
        # The first `monitor` of a run, which only takes in the start, gives no round.
        if "monitor" in part and (part["monitor"] or {}).get("round", 0) == max_rounds:
            break
    return Measured(run, run.workspace.evaluations.load(key))
