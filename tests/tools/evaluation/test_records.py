"""Evaluations on disk."""

from dataclasses import replace
from pathlib import Path

from nslora.graph.runs.run import Run
from nslora.tools.evaluation.records import read_evaluation, write_evaluation


def test_a_line_separator_in_a_reply_does_no_harm(finished: Run, tmp_path: Path) -> None:
    said = "one\u2028two\u2029three\x85four"
    state = finished.state()
    assert state is not None
    assert state["start_measured"]
    rows, failures = read_evaluation(finished.workspace.evaluations / f"{state['start_measured']['key']}.jsonl")
    told = [replace(each, reply=said, question=said) for each in failures]
    write_evaluation(tmp_path / "e.jsonl", rows, told)
    assert read_evaluation(tmp_path / "e.jsonl") == (rows, told)
