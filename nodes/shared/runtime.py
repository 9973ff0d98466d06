"""What every node needs: its workspace, and a way to show how far it is."""

import time
from typing import Any

from langgraph.config import get_stream_writer
from langgraph.errors import GraphDrained
from langgraph.runtime import Runtime, get_runtime

from nslora.graph.state import AdaptationContext
from nslora.tools.errors import BudgetError, RunError
from nslora.tools.evaluation.rollouts import STORED_REPLIES
from nslora.tools.policy import OnProgress
from nslora.tools.workspace.task_clock import TaskClock
from nslora.tools.workspace.workspace import Workspace, open_workspace

# How often a node saves what it has, in the unit of its progress: there a run can stop. `approve` goes on to its end,
# since a person's answer is used up with the first stop.
SAVES_EACH = {"lora_update": 1, "textgrad_edit": STORED_REPLIES, "evaluate": STORED_REPLIES, "finish": STORED_REPLIES}


def thread_of(runtime: Runtime[AdaptationContext]) -> str:
    """The thread whose state a node was given; "" where the graph keeps none."""
    return getattr(runtime.execution_info, "thread_id", None) or ""


def workspace_for(runtime: Runtime[AdaptationContext]) -> Workspace:
    """The workspace of this run. Raises RunError where the graph was invoked without its context."""
    if runtime.context is None or not runtime.context.folder:  # a server makes an empty one
        raise RunError(
            "The graph was invoked without its context: pass context=run.context (also when resuming, since "
            "a context is never persisted)."
        )
    workspace = open_workspace(runtime.context.folder)
    # The same task id again after a kill: what it generated before stays on its account. A fork that begins with the
    # first evaluation has its source's task id, but a thread of its own.
    workspace.task_id = getattr(runtime.execution_info, "task_id", None) or ""
    thread = thread_of(runtime)
    workspace.replies.payer = f"{thread}/{workspace.task_id}" if workspace.task_id else ""
    workspace.clock = TaskClock(workspace.folder, workspace.task_id)
    return workspace


def stream_progress(node: str, what: str, deadline: float | None = None) -> OnProgress:
    """A progress callback that streams `custom` events: {"node", "what", "done", "total"}.

    It raises BudgetError where `deadline` (of time.monotonic) has passed.
    """
    write = get_stream_writer()
    runtime = get_runtime(AdaptationContext)
    clock = open_workspace(runtime.context.folder).clock

    def on_progress(done: int, total: int) -> None:
        event: dict[str, Any] = {"node": node, "what": what, "done": done, "total": total}
        write(event)
        clock.tick()
        if runtime.drain_requested and node in SAVES_EACH and done % SAVES_EACH[node] == 0:
            clock.save()
            raise GraphDrained(runtime.drain_reason or "stopped")
        if deadline is not None and time.monotonic() > deadline and done < total:
            raise BudgetError(f"stopped at {done} of {total} {what}: the run's max_seconds leave no more time.")

    return on_progress
