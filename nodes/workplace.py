"""What every node needs: its lab, and a way to show how far it is."""

from typing import Any

from langgraph.config import get_stream_writer
from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext
from nslora.tools.errors import RunError
from nslora.tools.lab import Lab, open_lab
from nslora.tools.policy import Advance


def lab_for(runtime: Runtime[AdaptationContext]) -> Lab:
    """The lab of this run. Raises RunError where the graph was invoked without its context."""
    if runtime.context is None:
        raise RunError("The graph was invoked without its context: pass context=run.context (also when resuming, since "
                       "a context is never persisted).")
    return open_lab(runtime.context.folder)


def progress(node: str, what: str) -> Advance:
    """A progress callback that streams `custom` events: {"node", "what", "done", "total"}."""
    write = get_stream_writer()

    def advance(done: int, total: int) -> None:
        event: dict[str, Any] = {"node": node, "what": what, "done": done, "total": total}
        write(event)

    return advance
