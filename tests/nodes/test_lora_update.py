"""The LoRA update."""

from collections.abc import Callable
from pathlib import Path

from nslora.graph.runs.run import Run
from nslora.tools.tasks.task import Task


def test_the_largest_seed_trains(keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    run = Run.create(
        tmp_path / "run",
        task=keepers,
        model=str(tiny_folder()),
        strategy="lora",
        max_rounds=1,
        seed=2**32 - 1,
        lora={"epochs": 1},
        device={"threads": 1, "device": "cpu"},
    )
    assert [each["error"] for each in run.adapt().report["rounds"]] == [None]
