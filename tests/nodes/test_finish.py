"""The end of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_runs import rows

from nslora.graph.runs.run import Run
from nslora.tools.errors import RewardError
from nslora.tools.tasks.task import Task, task_from_rows

Begin = Callable[..., Run]


def test_a_test_that_cannot_be_scored_says_where_the_choice_lies(
    begin: Begin, keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    asked = {row.question for row in keepers.test[1:]}

    def reward(question: str, reference: str, reply: str) -> float:
        if question in asked:
            raise ValueError("no such row")
        return 0.5

    task = task_from_rows(
        train=rows(keepers, "train"),
        validation=rows(keepers, "validation"),
        test=rows(keepers, "test"),
        reward=reward,
        max_new_tokens=8,
    )
    run = Run.create(
        tmp_path / "run",
        task=task,
        model=str(tiny_folder()),
        strategy="lora",
        max_rounds=0,
        device={"threads": 1, "device": "cpu"},
    )
    with pytest.raises(RewardError, match=r"no such row.*begin a new run.*Untested, but kept: no adapter, the prompt"):
        run.adapt()
