"""The end of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_runs import rows

from nslora.graph.runs.run import Run
from nslora.tools.errors import RewardError, StoppedError
from nslora.tools.rewards import calling
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


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_judge_that_cannot_be_reached_stops_the_run_and_resume_goes_on(
    keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setattr(calling.time, "sleep", lambda _: None)
    asked = {row.question for row in getattr(keepers, split)[1:]}
    out_of_order = True

    async def judge(question: str, reference: str, reply: str) -> dict[str, object]:
        if out_of_order and question in asked:
            raise TimeoutError("the judge is late")
        return {"score": 0.5, "reason": "half"}

    splits = {each: rows(keepers, each) for each in ("train", "validation", "test")}
    device = {"threads": 1, "device": "cpu"}
    run = Run.create(
        tmp_path / "run",
        task=task_from_rows(**splits, reward=judge, max_new_tokens=8),
        model=str(tiny_folder()),
        strategy="lora",
        max_rounds=0,
        device=device,
    )
    with pytest.raises(StoppedError, match=r"the judge is late.*6 tries.*nslora resume .*run") as caught:
        run.adapt()
    assert "begin a new run" not in str(caught.value)
    out_of_order = False
    assert run.resume().test.base == 0.0
    assert run.report()["test"]["base"]["reward"] == 0.5
