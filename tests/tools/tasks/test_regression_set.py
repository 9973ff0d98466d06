"""The regression set: questions on which no update may make the model worse."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from nslora.graph.runs.run import Run
from nslora.nodes.shared.verdict import verdict_on
from nslora.tools.errors import TaskError
from nslora.tools.evaluation.acceptance import keep_or_drop
from nslora.tools.evaluation.records import Evaluation, Row
from nslora.tools.tasks.regression_set import read_regression_set
from nslora.tools.tasks.task import Task, task_from_rows


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "anchor.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_candidate_answers_the_regression_set_and_the_record_says_how(
    begin: Callable[..., Run], tmp_path: Path
) -> None:
    anchor = written(tmp_path, [{"question": "Who rows the boat?", "reference": "zz"}] * 2)
    run = begin(anchor=anchor, max_rounds=1)
    (record,) = run.adapt().report["rounds"]
    assert record["numbers"]["anchor_gain"] == 0.0
    evaluation = run.workspace.evaluations.load(record["evaluation"])
    assert len(evaluation.of("anchor")) == 2
    assert not evaluation.failed("anchor")
    texts = "".join(path.read_text() for path in (run.folder / "material").glob("*"))
    assert "anchor" not in texts


def test_a_candidate_under_which_the_regression_reward_falls_is_dropped_whatever_it_gains() -> None:
    verdict = keep_or_drop([0.0] * 10, [1.0] * 10, regression_old=[1.0, 1.0], regression_new=[1.0, 0.5])
    assert not verdict.kept
    assert "anchor" in verdict.reason


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"reference": "a"}], r"anchor.jsonl:1: no question \(found: reference\)"),
        ([{"question": "Who?", "reference": None}], "needs the field 'reference'"),
    ],
)
def test_a_regression_row_that_cannot_be_scored_is_refused(
    keepers: Task, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        read_regression_set(written(tmp_path, rows), keepers)


def test_a_regression_row_of_the_train_split_is_refused(keepers: Task, tmp_path: Path) -> None:
    row = {"question": keepers.train[0].question.upper(), "reference": "ok"}
    with pytest.raises(TaskError, match="also in the train split"):
        read_regression_set(written(tmp_path, [row]), keepers)


def test_a_regression_row_of_the_test_split_is_refused_before_anything_is_written(
    begin: Callable[..., Run], keepers: Task, tmp_path: Path
) -> None:
    anchor = written(tmp_path, [{"question": keepers.test[0].question, "reference": "ok"}])
    with pytest.raises(TaskError, match="looks at only once"):
        begin(anchor=anchor)
    assert not (tmp_path / "run").exists()


def test_the_report_shows_the_gap_between_validation_and_test(finished: Run) -> None:
    report = finished.report()
    gap = report["overfit_gap"]["result"]
    assert gap == report["validation"]["result"]["reward"] - report["test"]["result"]["reward"]
    assert "sign-flip" in report["keep_test"]
    assert {"level", "smallest_detectable", "p_value"} <= report["rounds"][0]["numbers"].keys()


def test_small_falls_on_the_regression_set_do_not_add_up(begin: Callable[..., Run], tmp_path: Path) -> None:
    """Each of three candidates is a little worse than the one before: by the third, it is too much."""
    run = begin(max_rounds=1, keep={"level": 0.45, "anchor_tolerance": 0.1})
    for name, value in (("start", 1.0), ("kept", 0.92), ("new", 0.84)):
        rows = [
            Row("a", "validation", float(name == "new"), {}, float(name == "new"), None),
            Row("anchor-1", "anchor", value, {}, value, None),
        ]
        run.workspace.evaluations.write(Evaluation(name, rows))
    state: Any = {
        "start_measured": {"key": "start"},
        "kept_measured": {"key": "kept"},
        "measured": {"key": "new"},
        "proposal": None,
    }
    assert verdict_on(state, run.workspace)["numbers"]["anchor_gain"] == pytest.approx(-0.16)
    assert not verdict_on(state, run.workspace)["kept"]


def test_a_regression_set_may_hold_columns_that_json_cannot_represent(
    begin: Callable[..., Run], tmp_path: Path
) -> None:
    path = tmp_path / "anchor.parquet"
    rows = {"question": ["Who rows the boat?"], "reference": ["zz"], "day": [datetime.date(2024, 1, 1)]}
    parquet.write_table(pyarrow.table(rows), path)
    assert begin(anchor=str(path)).workspace.regression_hash


ROWS = [{"passage": f"It was {c}.", "question": f"Who was {c}?", "reference": c} for c in "abcd"]


def in_context() -> Task:
    """A task whose prompt asks two columns."""
    prompt = "# Question template\n\nP: {passage}\nQ: {question}"
    return task_from_rows(train=ROWS[:2], validation=ROWS[2:3], test=ROWS[3:], prompt=prompt)


def test_a_regression_row_is_asked_as_the_tasks_rows_are(tmp_path: Path) -> None:
    row = {"passage": "It was z.", "question": "Who was z?", "reference": ["z", "Z. Z."]}
    (example,) = read_regression_set(written(tmp_path, [row]), in_context())
    assert (example.question, example.reference) == ("P: It was z.\nQ: Who was z?", "z")
    assert in_context().reward(example, "Z. Z.").passed
    with pytest.raises(TaskError, match="no field 'passage'"):
        read_regression_set(written(tmp_path, [{"question": "Who was z?", "reference": "z"}]), in_context())


@pytest.mark.parametrize("reference", [{"km": 5}, [], None, float("nan")])
def test_a_regression_row_without_an_answer_is_refused(keepers: Task, tmp_path: Path, reference: Any) -> None:
    with pytest.raises(TaskError, match=r"anchor.jsonl:1: "):
        read_regression_set(written(tmp_path, [{"question": "Who was z?", "reference": reference}]), keepers)
