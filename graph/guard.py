"""Who may work on a run: one process, on the run's own thread."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langgraph.config import get_config
from langgraph.constants import CONFIG_KEY_CHECKPOINTER

from nslora.graph.lock import only_while_alone
from nslora.graph.projection import Stamp, show_branch
from nslora.graph.soundness import refuse_wrong_values
from nslora.graph.state import AdaptationContext, AdaptationState, Changes
from nslora.nodes.shared.runtime import checkpoint_of, thread_of
from nslora.tools.errors import RunError
from nslora.tools.files import read_json
from nslora.tools.workspace.record import OLD_THREAD, OWN_THREAD, QUESTION_FILE, RUN_FILE

Node = Callable[..., Changes]


def alone(node: Node) -> Node:
    """Let a node work only while no other process works on the same run, and keep the folder in step with the state."""

    @functools.wraps(node)
    def guarded(state: AdaptationState, **given: Any) -> Changes:
        context = getattr(given.get("runtime"), "context", None)
        if context is None or getattr(context, "folder", None) == "":  # the node itself says what is missing
            return node(state, **given)
        if not isinstance(context, AdaptationContext):  # a parent graph hands its own on to a subgraph
            raise RunError(
                f"The graph was invoked with the context of another one ({type(context).__name__}): call it "
                "from a node of yours, with context=run.context."
            )
        persisted = get_config()["configurable"].get(CONFIG_KEY_CHECKPOINTER)  # else the config's thread is no thread
        folder, thread = Path(context.folder), thread_of(given["runtime"]) if persisted else ""
        _refuse_another_runs_thread(folder, thread)
        with only_while_alone(folder, getattr(context, "stream", "")):
            if not (folder / RUN_FILE).is_file():  # the node itself says so
                return node(state, **given)
            refuse_wrong_values(state)
            if not thread and node.__name__ == "evaluate":
                _refuse_lost_questions(folder, state)
            show_branch(folder, state, Stamp(thread, checkpoint_of(given["runtime"]) if thread else "", node.__name__))
            if node.__name__ != "approve":
                (folder / QUESTION_FILE).unlink(missing_ok=True)  # the run went on, or was taken back
            return node(state, **given)

    return guarded


def _refuse_another_runs_thread(folder: Path, thread: str) -> None:
    """Raise RunError if another run made this thread: its state would be written into this folder.

    A server or a parent graph may name its threads as it likes.
    """
    if not OWN_THREAD.fullmatch(thread) or not (folder / RUN_FILE).is_file():
        return
    own = read_json(folder / RUN_FILE).get("thread", OLD_THREAD)
    if thread != own:
        raise RunError(
            f"The thread {thread} is another run's than {folder}, whose thread is {own}: give the graph the "
            "context of the run whose config you pass."
        )


def _refuse_lost_questions(folder: Path, state: AdaptationState) -> None:
    """Raise RunError if a person is to be asked by a graph that cannot wait for an answer."""
    if (state.get("approve") or read_json(folder / RUN_FILE)["settings"].get("approve", "nothing")) != "nothing":
        raise RunError(
            f"{folder} asks a person about updates, and the graph has no checkpointer to wait for the answer with: "
            "compile it, or its parent graph, with one."
        )
