"""What the nodes of one run work with."""

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError
from nslora.tools.tasks.task import Task
from nslora.tools.testing.tiny_model import write_tiny_model
from nslora.tools.workspace.workspace import _WORKSPACES

Begin = Callable[..., Run]


def test_a_run_does_not_go_on_with_other_weights_or_another_regression_set(
    begin: Begin, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    anchor = tmp_path / "anchor.jsonl"
    anchor.write_text('{"question": "Who rows?", "reference": "zz"}\n')
    run = Run.create(
        tmp_path / "run",
        task=begin("other").workspace.task,
        model=str(model),
        strategy="textgrad",
        approve="edits",
        anchor=str(anchor),
        max_rounds=1,
        device={"threads": 1, "device": "cpu"},
    )
    with pytest.raises(RunError, match="waits"):
        run.adapt()
    write_tiny_model(model, seed=1)
    _WORKSPACES.clear()
    with pytest.raises(RunError, match="is not the one that"):
        Run.open(run.folder).resume({"answer": "accept"})
    anchor.write_text('{"question": "Who sails?", "reference": "zz"}\n')
    _WORKSPACES.clear()
    with pytest.raises(RunError, match=r"regression set .* has changed"):
        Run.open(run.folder)


def test_a_run_that_nobody_holds_any_more_frees_its_model(
    keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    policies = []
    for i in range(4):
        run = Run.create(
            tmp_path / str(i), task=keepers, model=str(tiny_folder()), device={"threads": 1, "device": "cpu"}
        )
        policies.append(weakref.ref(run.workspace.policy))
    del run
    gc.collect()
    assert [policy() is None for policy in policies] == [True, True, False, False]
