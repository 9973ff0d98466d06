"""The whole job in one call."""

import re
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

from nslora.graph.runs.folder import unused
from nslora.graph.runs.result import Result
from nslora.graph.runs.run import Run
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.inference.weights import EMBEDDED_NAME
from nslora.tools.policy import Policy
from nslora.tools.tasks.task import Task, load_task

NAME_CHARACTERS = 80  # of a task, in the default folder of a run


def adapt(
    task: Task | str | Path,
    *,
    model: str | PathLike[str] | Policy = EMBEDDED_NAME,
    editor: str | Chat = "rules",
    folder: str | Path | None = None,
    **options: Any,
) -> Result:
    """Adapt a model to a task: evaluate, decide, update, until nothing is left to gain.

    Args:
        task: A Task, the name of an embedded one ("handbook"), a folder, or a task.yaml.
        model: The embedded model's name, a folder, a hub id, or an object with the methods of `Policy`.
        editor: "rules", "policy", a name such as "openai:gpt-4o", or any LangChain chat model.
        folder: New folder of the run. None: `runs/TASK-TIME`.
        **options: Further arguments of `Run.create`: checkpoints, graph, notify, and all settings.

    Raises:
        NsloraError: If the task, the model, the editor or a setting cannot be used; nothing is written then.
        RunError: If the run stops before its end; `Run.open(folder).resume()` goes on with it.
    """
    loaded = task if isinstance(task, Task) else load_task(task)
    return Run.create(folder or default_folder(loaded.name), task=loaded, model=model, editor=editor, **options).adapt()


def default_folder(task: str) -> Path:
    """`runs/TASK-TIME`, with a number behind it if that is taken."""
    slug = re.sub(r"[^\w.-]+", "-", task).strip("-.")[:NAME_CHARACTERS] or "run"
    return unused(Path("runs") / f"{slug}-{datetime.now():%Y%m%d-%H%M%S}")
