"""The database grows by the same amount every round: the state is not what accumulates."""

from pathlib import Path

import bench_growth
import pytest

from nslora.graph import build as adapt
from nslora.graph.build import build_graph
from nslora.graph.runs.checkpoints import CHECKPOINTS_FILE, sqlite_checkpoints
from nslora.graph.runs.history import line_of


def test_a_round_adds_as_many_bytes_at_the_end_as_at_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in bench_growth.stand_ins(1):
        monkeypatch.setattr(adapt, name, getattr(adapt, name))  # put back afterwards
    found = bench_growth.grow(tmp_path, 60)
    first, last = sum(found.bytes_[1:21]), sum(found.bytes_[-20:])
    assert last <= 1.1 * first
    with sqlite_checkpoints(tmp_path / CHECKPOINTS_FILE) as saver:
        graph = build_graph(checkpointer=saver)
        state = graph.get_state({"configurable": {"thread_id": "growth"}}).values
        line = line_of(graph, {"configurable": {"thread_id": "growth"}})
        some = [line[i] for i in (0, 1, 97, 160, len(line) - 2)]
        assert [graph.get_state(each.config) for each in some] == some
    assert [record["round"] for record in state["rounds"]] == list(range(1, 61))
    # Read in one pass, and each state as LangGraph reads it alone; whole rounds are stored at 20, 40 and 60.
    assert all(len(each.values.get("rounds", ())) == each.values.get("round", 0) for each in line)
    assert len(line) == 60 * 4 + 5
