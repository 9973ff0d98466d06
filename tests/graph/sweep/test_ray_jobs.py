"""The sweep on Ray: refused in a sentence without it, and on two nodes what it is on this machine."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ray_nodes import run_with_ray

from nslora import Task, sweep
from nslora.errors import SettingsError
from nslora.graph.sweep.ray_jobs import RayExecutor
from nslora.graph.sweep.sweep import executor_of

ALIKE = ("status", "rounds", "base", "result", "validation", "changed", "stop")


def test_ray_is_chosen_by_its_name_and_asked_for_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"--on ray needs the package ray: pip install 'nslora\[ray\]'"):
        executor_of("ray", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert executor_of("ray://head:10001", 2) == RayExecutor(2, "ray://head:10001")
    with pytest.raises(SettingsError, match="wanted local or ray or ray://HOST:10001, or an executor"):
        executor_of("slurm", 1)


@pytest.mark.engines
def test_a_sweep_on_two_nodes_is_the_local_one_whatever_is_killed(
    keepers: Task, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    grid = {
        "tasks": [keepers.source],
        "models": [str(tiny_folder())],
        "strategies": ["lora", "textgrad"],
        "seeds": 2,
        "settings": {"max_rounds": 1, "reuse_replies": False, "lora": {"epochs": 2}},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    run_with_ray(Path(__file__).with_name("ray_sweep.py"), tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["killed"]
    assert (found["failed"], found["left"]) == ([], 4 - len(found["known"]))  # the step under way was saved
    assert found["left"] >= 2
    assert not list((tmp_path / "sweep" / "logs").glob("*.stop"))
    assert len({row["folder"] for row in found["rows"] if row["status"] == "finished"}) == 4
    here = json.loads(json.dumps(sweep(grid, folder=tmp_path / "here", share=False).rows))
    assert [[row[name] for name in ALIKE] for row in found["rows"]] == [[row[name] for name in ALIKE] for row in here]
