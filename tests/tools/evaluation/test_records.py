"""Evaluations on disk and in memory."""

from dataclasses import replace
from pathlib import Path

import pytest

from nslora.graph.runs.run import Run
from nslora.tools.errors import DamagedError
from nslora.tools.evaluation.records import EvaluationCost, EvaluationStore, Row, read_evaluation, write_evaluation

RIGHT, WRONG = {"fact": 1.0}, {"fact": 0.0}


def test_an_evaluation_reads_back_as_it_was_written(finished: Run, tmp_path: Path) -> None:
    state = finished.state()
    assert state is not None
    assert state["start_measured"] is not None
    stored = finished.workspace.evaluations.load(state["start_measured"]["key"])
    assert stored.rows
    assert stored.failures
    told = replace(
        stored,
        key="e",
        failures=[
            replace(each, feedback="half a pair: \ud83d", truncated=i == 0) for i, each in enumerate(stored.failures)
        ],
        payer="task",
        cost=EvaluationCost(1, 2, 3),
    )
    write_evaluation(tmp_path / "e.jsonl", told)
    assert read_evaluation(tmp_path / "e.jsonl") == told


def test_what_a_run_wrote_is_not_read_from_disk_again(finished: Run, tmp_path: Path) -> None:
    evaluation = next(
        finished.workspace.evaluations.load(path.stem) for path in finished.workspace.evaluations.folder.glob("*.jsonl")
    )
    store = EvaluationStore(tmp_path)
    assert evaluation.key not in store
    store.write(evaluation)
    assert evaluation.key in store
    assert store.load(evaluation.key) is evaluation
    assert EvaluationStore(tmp_path).load(evaluation.key) == evaluation


def test_gains_are_those_of_validation_by_row(tmp_path: Path, finished: Run) -> None:
    evaluation = next(map(read_evaluation, finished.workspace.evaluations.folder.glob("*.jsonl")))
    store = EvaluationStore(tmp_path)
    for key, values in (("old", (0.0, 1.0)), ("new", (1.0, 1.0))):
        rows = [Row(name, "validation", value, RIGHT, value, None) for name, value in zip("ba", values, strict=True)]
        store.write(replace(evaluation, key=key, rows=[*rows, Row("t", "train", 0.0, WRONG, 0.0, None)]))
    assert store.gains("new", over="old") == [0.0, 1.0]


@pytest.mark.parametrize("lines", [slice(1, None), slice(None, -1), slice(0, 0)])
def test_a_damaged_evaluation_is_refused_by_name(finished: Run, tmp_path: Path, lines: slice) -> None:
    stored = next(finished.workspace.evaluations.folder.glob("*.jsonl"))
    write_evaluation(tmp_path / "e.jsonl", replace(read_evaluation(stored), passing=[]))
    whole = (tmp_path / "e.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "e.jsonl").write_text("".join(whole[lines]))
    with pytest.raises(DamagedError, match=r"The evaluation .*e\.jsonl is damaged"):
        read_evaluation(tmp_path / "e.jsonl")
