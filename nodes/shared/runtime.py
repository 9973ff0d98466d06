"""What the nodes get from LangGraph: the workspace of the run, and a stream for their progress."""

import time
from collections.abc import Mapping

from langgraph.errors import GraphDrained
from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext
from nslora.tools.errors import BudgetError, RunError
from nslora.tools.evaluation.rollouts import STORED_REPLIES
from nslora.tools.policy import OnStep
from nslora.tools.workspace.task_clock import TaskClock
from nslora.tools.workspace.workspace import Workspace, open_workspace, refuse_changed_checks

# How often a node saves its work, in the unit of its progress; a run can stop there. `approve` never stops half-way,
# since LangGraph gives a person's answer to a task only once.
SAVES_EACH = {"lora_update": 1, "textgrad_edit": STORED_REPLIES, "evaluate": STORED_REPLIES, "finish": STORED_REPLIES}


def thread_of(runtime: Runtime[AdaptationContext]) -> str:
    """The thread whose state a node was given; "" if the graph keeps none."""
    return getattr(runtime.execution_info, "thread_id", None) or ""


def checkpoint_of(runtime: Runtime[AdaptationContext]) -> str:
    """Id of the checkpoint that a node began with; "" if the graph keeps none."""
    return getattr(runtime.execution_info, "checkpoint_id", None) or "" if thread_of(runtime) else ""


def workspace_for(runtime: Runtime[AdaptationContext], node: str) -> Workspace:
    """The workspace of this run, with a clock for this task; its progress goes to the graph's `custom` stream.

    Args:
        runtime: As LangGraph gives it to the node.
        node: The node's name, for progress events: {"node", "what", "done", "total"}, and after a training step
            "values", its `STEP_VALUES`.

    Raises:
        RunError: If the graph was invoked without its context, or the scoring of a check has changed since.
    """
    if runtime.context is None or not runtime.context.folder:  # a server makes an empty one
        raise RunError(
            "The graph was invoked without its context: pass context=run.context (also when resuming, since "
            "a context is never persisted)."
        )
    workspace = open_workspace(runtime.context.folder)
    refuse_changed_checks(workspace.folder, workspace.task)  # a server has not asked before
    # The same task id again after a kill: what it generated before stays on its account. A fork that begins with the
    # first evaluation has its source's task id, but a thread of its own.
    workspace.task_id = getattr(runtime.execution_info, "task_id", None) or ""
    thread = thread_of(runtime)
    workspace.replies.payer = f"{thread}/{workspace.task_id}" if workspace.task_id else ""
    workspace.seat_judges()
    workspace.clock = clock = TaskClock(workspace.folder, workspace.task_id)

    def on_progress(what: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        event = {"node": node, "what": what, "done": done, "total": total}
        runtime.stream_writer({**event, "values": dict(values)} if values else event)
        clock.tick()
        # An agent's trajectories are kept one by one.
        each = 1 if workspace.task.agent else SAVES_EACH.get(node, 0)
        if runtime.drain_requested and node in SAVES_EACH and done % each == 0:
            clock.save()
            raise GraphDrained(runtime.drain_reason or "stopped")

    workspace.on_progress = on_progress
    return workspace


def progress(workspace: Workspace, what: str, until: float | None = None) -> OnStep:
    """A callback for work that is counted in `what`. It raises BudgetError if time.monotonic() has passed `until`."""

    def on_progress(done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        workspace.on_progress(what, done, total, values)
        if until is not None and time.monotonic() > until and done < total:
            raise BudgetError(f"stopped at {done} of {total} {what}: the run's max_seconds leave no more time.")

    return on_progress
