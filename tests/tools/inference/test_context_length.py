"""Rows that outgrow the model's context."""

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_runs import rows

from nslora.graph.runs.run import Run
from nslora.tools.errors import TooLongError
from nslora.tools.files import read_jsonl
from nslora.tools.tasks.task import Task, task_from_rows

Begin = Callable[..., Run]


@pytest.mark.parametrize("everywhere", [False, True])
def test_train_rows_beyond_the_context_are_left_out_of_a_job_and_named(
    tmp_path: Path, tiny_folder: Callable[..., Path], keepers: Task, everywhere: bool
) -> None:
    train = rows(keepers, "train")
    for row in train if everywhere else train[:1]:
        row["reference"] = "x" * 5000
    task = task_from_rows(
        train=train, validation=rows(keepers, "validation"), test=rows(keepers, "test"), max_new_tokens=8
    )
    notes: list[str] = []
    run = Run.create(
        tmp_path / "run",
        task=task,
        model=str(tiny_folder()),
        strategy="lora",
        max_rounds=1,
        device={"threads": 1, "device": "cpu"},
        notify=notes.append,
    )
    (only,) = run.adapt().report["rounds"]
    told = only["error"] if everywhere else only["note"]
    assert "more than the 2048 tokens of the model's context" in told
    assert told.endswith("shorten or remove them")
    assert f"and {len(train) - 5} more" in told if everywhere else "train-1;" in told
    trained = read_jsonl(run.folder / "material" / "1-rows.jsonl")
    assert len(trained) == (0 if everywhere else len(train) - 1)
    assert any("references of train and validation are longer than a reply may be" in note for note in notes)


def test_a_question_beyond_the_context_is_named_before_anything_is_spent(
    begin: Begin, tmp_path: Path, tiny_folder: Callable[..., Path], keepers: Task
) -> None:
    test = [*rows(keepers, "test"), {"question": "x" * 5000, "reference": "ok"}]
    task = task_from_rows(
        train=rows(keepers, "train"), validation=rows(keepers, "validation"), test=test, max_new_tokens=8
    )
    run = Run.create(
        tmp_path / "run",
        task=task,
        model=str(tiny_folder()),
        strategy="lora",
        max_rounds=1,
        device={"threads": 1, "device": "cpu"},
    )
    with pytest.raises(TooLongError, match=f"test test-{len(test)}"):
        run.adapt()
    assert not list(run.workspace.evaluations.folder.glob("*"))
