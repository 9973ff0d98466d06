"""Lines of recorded decision trees, made by hand."""

from dataclasses import asdict
from typing import Any

from nslora.router import Need, RouterInput, Update
from nslora.tools.router.monitoring_signal import progress_of
from nslora.tools.schema import KINDS


def line(task: str, path: str, tflop: float, value: float, test: float | None = None, **more: Any) -> dict[str, Any]:
    """A node as it is recorded; edits are what the failures need, and training costs ten times as much."""
    steps: list[Any] = path.split("/") if path else []
    history = tuple(Update(step, True, 0.1, 0.1) for step in steps)
    router_input = RouterInput(
        task=task,
        round=len(steps),
        rounds_left=0,
        failures=10,
        validation_reward=value,
        target=1.0,
        need=Need(10, 0.1, 0.9, 0.0, 0.1, 8.0),
        progress={kind: progress_of(kind, history) for kind in KINDS},
        cost_tokens={"lora": 1000.0, "textgrad": 100.0},
        remade_waiting=0,
        seed=0,
        history=history,
    )
    return {
        "task": task, "seed": 0, "model": "m", "editor": "e", "path": path, "leaf": "", "router": asdict(router_input),
        "knows": {"bounds": {"lora": 0.9, "textgrad": 0.5}}, "update": None,
        "delivers": {"validation": value, "test": [value if test is None else test] * 2},
        "spent": {"tflop": tflop, "editor_tokens": 0.0}, **more,
    }  # fmt: skip
