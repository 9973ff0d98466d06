"""The database grows by the same amount every round: the state is not what accumulates."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nslora.graph import adapt
from nslora.graph.adapt import build_graph
from nslora.tools.checkpoints import CHECKPOINTS_FILE, sqlite_checkpoints

BENCHMARKS = Path(__file__).parent / "benchmarks"


def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_growth", BENCHMARKS / "bench_growth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_growth"] = module
    spec.loader.exec_module(module)
    return module


def test_a_round_adds_as_many_bytes_at_the_end_as_at_the_beginning(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = benchmark(monkeypatch)
    for name in bench.stand_ins(1):
        monkeypatch.setattr(adapt, name, getattr(adapt, name))      # put back afterwards
    found = bench.grow(tmp_path, 60)
    first, last = sum(found.bytes_[1:21]), sum(found.bytes_[-20:])
    assert last <= 1.1 * first
    with sqlite_checkpoints(tmp_path / CHECKPOINTS_FILE) as saver:
        state = build_graph(saver).get_state({"configurable": {"thread_id": "growth"}}).values
    assert [record["round"] for record in state["rounds"]] == list(range(1, 61))
