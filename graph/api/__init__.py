"""Neurosymbolic LoRA: decide at every round, from measurements, whether to tune weights or to rewrite the prompt.

What this module and `nslora.{errors, nodes, router, settings, testing, tracking}` name is public. All else may change.
A name is imported when it is first used, so that `import nslora` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nslora.graph.build import build_graph as build_graph
    from nslora.graph.build import build_workflow as build_workflow
    from nslora.graph.runs.adapt import adapt as adapt
    from nslora.graph.runs.merge_prompt import MergedPrompt as MergedPrompt
    from nslora.graph.runs.result import Result as Result
    from nslora.graph.runs.run import Run as Run
    from nslora.graph.sweep.sweep import sweep as sweep
    from nslora.tools.policy import Policy as Policy
    from nslora.tools.prompt import Demonstration as Demonstration
    from nslora.tools.prompt import Prompt as Prompt
    from nslora.tools.prompt import Section as Section
    from nslora.tools.rewards.score import Score as Score
    from nslora.tools.schema import Example as Example
    from nslora.tools.tasks.task import Task as Task
    from nslora.tools.tasks.task import load_task as load_task
    from nslora.tools.tasks.task import task_from_rows as task_from_rows

    __version__: str

_MODULES = ("agents", "errors", "nodes", "router", "settings", "testing", "tracking")
_NAMES = {
    "nslora.graph.build": ("build_graph", "build_workflow"),
    "nslora.graph.runs.adapt": ("adapt",),
    "nslora.graph.runs.merge_prompt": ("MergedPrompt",),
    "nslora.graph.runs.result": ("Result",),
    "nslora.graph.runs.run": ("Run",),
    "nslora.graph.sweep.sweep": ("sweep",),
    "nslora.tools.policy": ("Policy",),
    "nslora.tools.prompt": ("Demonstration", "Prompt", "Section"),
    "nslora.tools.rewards.score": ("Score",),
    "nslora.tools.schema": ("Example",),
    "nslora.tools.tasks.task": ("Task", "load_task", "task_from_rows"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nslora")
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        found = import_module(f"nslora.{name}")
    else:
        raise AttributeError(f"module 'nslora' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
