"""The shipped agent over the handbook: its tool, its graph, and a run of it on a tiny model."""

from pathlib import Path

import pytest

from nslora.graph.handbook_agent import look_up
from nslora.graph.runs.run import Run
from nslora.tools.agents.running import try_agent
from nslora.tools.evaluation.rollouts import with_trajectory
from nslora.tools.files import read_jsonl
from nslora.tools.tasks.task import load_task
from nslora.tools.testing.tiny_model import write_tiny_model


def test_the_tool_finds_entries_and_the_graph_has_two_nodes_that_call_the_model() -> None:
    task = load_task("handbook-agent")
    assert "in 1911" in look_up.invoke({"words": "Marrowick lighthouse lit"})
    assert look_up.invoke({"words": "xyzzy"}) == "The handbook says nothing about that."
    drawn = try_agent(task, task.prompt).get_graph().draw_mermaid()
    assert "librarian" in drawn
    assert "writer" in drawn
    found = {row.id: look_up.invoke({"words": row.question}) for row in task.test}
    assert sum(row.fields["key"] in found[row.id] for row in task.test) / len(task.test) > 0.9


@pytest.mark.engines
def test_a_run_of_it_on_a_tiny_model_records_what_each_trajectory_did(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "qwen2", blocks=2)
    task = load_task("handbook-agent", rows={"train": 4, "validation": 8, "test": 2}, max_new_tokens=8)
    run = Run.create(tmp_path / "run", task=task, model=str(model), max_rounds=1, reuse_replies=False)
    run.adapt()
    report = run.report()
    assert report["rounds"][0]["action"] in ("lora", "textgrad")
    (path, *_) = sorted((run.folder / "evaluations").glob("*.jsonl"))
    failures = [line["failure"] for line in read_jsonl(path) if "failure" in line]
    assert failures
    done = with_trajectory(task.train[0], failures[0]["trajectory"]).trajectory
    assert [call.sections for call in done.calls] == [("librarian", "look_up"), ("writer",)]
    assert failures[0]["fault"].startswith("call ")
