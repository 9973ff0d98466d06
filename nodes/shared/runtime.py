"""What every node needs: its lab, and a way to show how far it is."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langgraph.config import get_stream_writer
from langgraph.errors import GraphDrained
from langgraph.runtime import Runtime, get_runtime

from nslora.graph.lock import only_while_alone
from nslora.graph.state import AdaptationContext, AdaptationState, Changes
from nslora.tools.errors import BudgetError, RunError
from nslora.tools.evaluation.rollouts import STORED_REPLIES
from nslora.tools.files import read_json
from nslora.tools.policy import Advance
from nslora.tools.workspace.task_clock import TaskClock
from nslora.tools.workspace.workspace import OLD_THREAD, OWN_THREAD, QUESTION_FILE, RUN_FILE, Lab, open_lab

# How often a node saves what it has, in the unit of its progress: there a run can stop. `approve` goes on to its end,
# since a person's answer is used up with the first stop.
SAVES_EACH = {"lora_update": 1, "textgrad_edit": STORED_REPLIES, "evaluate": STORED_REPLIES, "finish": STORED_REPLIES}
Node = Callable[..., Changes]


def alone(node: Node) -> Node:
    """The node, working only where no other process works on the same run."""
    @functools.wraps(node)
    def guarded(state: AdaptationState, **given: Any) -> Changes:
        context = getattr(given.get("runtime"), "context", None)
        if context is None or getattr(context, "folder", None) == "":       # the node itself says what is missing
            return node(state, **given)
        if not isinstance(context, AdaptationContext):      # a parent graph hands its own on to a subgraph
            raise RunError(f"The graph was invoked with the context of another one ({type(context).__name__}): call it "
                           "from a node of yours, with context=run.context.")
        refuse_another_runs_thread(Path(context.folder), thread_of(given["runtime"]))
        with only_while_alone(Path(context.folder), context.stream):
            if node.__name__ != "approve":
                (Path(context.folder) / QUESTION_FILE).unlink(missing_ok=True)     # the run went on, or was taken back
            return node(state, **given)

    return guarded


def thread_of(runtime: Runtime[AdaptationContext]) -> str:
    """The thread whose state a node was given; "" where the graph keeps none."""
    return getattr(runtime.execution_info, "thread_id", None) or ""


def refuse_another_runs_thread(folder: Path, thread: str) -> None:
    """Raise RunError where the thread is one that another run made: its state would be written into this folder.

    A server, or a parent graph, has threads of its own.
    """
    if not OWN_THREAD.fullmatch(thread) or not (folder / RUN_FILE).is_file():
        return
    own = read_json(folder / RUN_FILE).get("thread", OLD_THREAD)
    if thread != own:
        raise RunError(f"The thread {thread} is another run's than {folder}, whose thread is {own}: give the graph the "
                       "context of the run whose config you pass.")


def lab_for(runtime: Runtime[AdaptationContext]) -> Lab:
    """The lab of this run. Raises RunError where the graph was invoked without its context."""
    if runtime.context is None or not runtime.context.folder:       # a server makes an empty one
        raise RunError("The graph was invoked without its context: pass context=run.context (also when resuming, since "
                       "a context is never persisted).")
    lab = open_lab(runtime.context.folder)
    # The same task id again after a kill: what it generated before stays on its account. A fork that begins with the
    # first evaluation has its source's task id, but a thread of its own.
    lab.task_id = getattr(runtime.execution_info, "task_id", None) or ""
    thread = thread_of(runtime)
    lab.replies.payer = f"{thread}/{lab.task_id}" if lab.task_id else ""
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
        if runtime.drain_requested and node in SAVES_EACH and done % SAVES_EACH[node] == 0:
            clock.save()
            raise GraphDrained(runtime.drain_reason or "stopped")
        if deadline is not None and time.monotonic() > deadline and done < total:
            raise BudgetError(f"stopped at {done} of {total} {what}: the run's max_seconds leave no more time.")

    return advance
