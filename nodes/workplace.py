"""What every node needs: its lab, and a way to show how far it is."""

import time
from typing import Any

from langgraph.config import get_stream_writer
from langgraph.errors import GraphDrained
from langgraph.runtime import Runtime, get_runtime

from nslora.graph.state import AdaptationContext
from nslora.tools.errors import BudgetError, RunError
from nslora.tools.lab import Lab, open_lab
from nslora.tools.policy import Advance
from nslora.tools.task_clock import TaskClock

SAVES_EACH_STEP = ("lora_update",)


def lab_for(runtime: Runtime[AdaptationContext]) -> Lab:
    """The lab of this run. Raises RunError where the graph was invoked without its context."""
    if runtime.context is None:
        raise RunError("The graph was invoked without its context: pass context=run.context (also when resuming, since "
                       "a context is never persisted).")
    lab = open_lab(runtime.context.folder)
    # The same task id again after a kill: what it generated before stays on its account.
    lab.replies.payer = lab.task_id = getattr(runtime.execution_info, "task_id", None) or ""
    lab.clock = TaskClock(lab.folder, lab.task_id)
    return lab


def progress(node: str, what: str, deadline: float | None = None) -> Advance:
    """A progress callback that streams `custom` events: {"node", "what", "done", "total"}.

    It raises BudgetError where `deadline` (of time.monotonic) has passed.
    """
    write = get_stream_writer()
    runtime = get_runtime(AdaptationContext)
    clock = open_lab(runtime.context.folder).clock

    def advance(done: int, total: int) -> None:
        event: dict[str, Any] = {"node": node, "what": what, "done": done, "total": total}
        write(event)
        clock.tick()
        # A step of training is saved when this is called, so a burst need not be waited for.
        if node in SAVES_EACH_STEP and runtime.drain_requested:
            clock.save()
            raise GraphDrained(runtime.drain_reason or "stopped")
        if deadline is not None and time.monotonic() > deadline and done < total:
            raise BudgetError(f"stopped at {done} of {total} {what}: the run's max_seconds leave no more time.")

    return advance
