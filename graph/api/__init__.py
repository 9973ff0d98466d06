"""Neurosymbolic LoRA: decide at every round, from measurements, whether to tune weights or to rewrite the prompt.

What this module and `nslora.errors`, `nslora.settings`, `nslora.testing`, `nslora.router` and `nslora.nodes` name is
public. All else may change. A name is imported when it is first used, so that `import nslora` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nslora.graph.build import build_graph, build_workflow
    from nslora.graph.runs.adapt import adapt
    from nslora.graph.runs.result import Result
    from nslora.graph.runs.run import Run
    from nslora.tools.policy import Policy
    from nslora.tools.prompt import Demonstration, Prompt
    from nslora.tools.rewards.score import Score
    from nslora.tools.schema import Example
    from nslora.tools.tasks.task import Task, load_task, task_from_rows

    __version__: str

_HOME = {
    "Demonstration": "nslora.tools.prompt",
    "Example": "nslora.tools.schema",
    "Policy": "nslora.tools.policy",
    "Prompt": "nslora.tools.prompt",
    "Result": "nslora.graph.runs.result",
    "Run": "nslora.graph.runs.run",
    "Score": "nslora.tools.rewards.score",
    "Task": "nslora.tools.tasks.task",
    "adapt": "nslora.graph.runs.adapt",
    "build_graph": "nslora.graph.build",
    "build_workflow": "nslora.graph.build",
    "load_task": "nslora.tools.tasks.task",
    "task_from_rows": "nslora.tools.tasks.task",
}

__all__ = [
    "Demonstration",
    "Example",
    "Policy",
    "Prompt",
    "Result",
    "Run",
    "Score",
    "Task",
    "__version__",
    "adapt",
    "build_graph",
    "build_workflow",
    "load_task",
    "task_from_rows",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nslora")
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    elif name in ("errors", "settings", "testing", "router", "nodes"):
        found = import_module(f"nslora.{name}")
    else:
        raise AttributeError(f"module 'nslora' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "errors", "nodes", "router", "settings", "testing"]
