"""The past of a run in its checkpoints: which checkpoint decided a round, its ancestors, and which files are whole."""

from pathlib import Path

from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot

from nslora.graph.build import Graph
from nslora.graph.runs.integrity import check_past
from nslora.tools.errors import NsloraError, RunError
from nslora.tools.files import quoted
from nslora.tools.workspace.workspace import Workspace


def checkpoint_before(graph: Graph, config: RunnableConfig, folder: Path, number: int) -> StateSnapshot:
    """The checkpoint from which round `number` was decided; for the round after the last, that of the end.

    Round 0 is the first evaluation. Raises RunError if the run never came so far.
    """
    if number < 0:
        raise RunError(f"Round {number}: wanted a round from 1, or 0 for the first evaluation.")
    # In round 0 a proposal waits when the first update is to be measured, and none when the start is.
    line = [
        each
        for each in line_of(graph, config)
        if each.values.get("round") == max(0, number - 1) and not each.values.get("proposal")
    ]
    for wanted in ("classify", "finish") if number > 0 else ("evaluate",):
        # Newest first: what a fork changed before it decided is part of what it decided from.
        if found := next((each for each in line if wanted in each.next), None):
            return found
    raise RunError(f"{folder} never came to round {number}: name an earlier one (nslora show {quoted(folder)}).")


def line_of(graph: Graph, config: RunnableConfig) -> list[StateSnapshot]:
    """A checkpoint and all that it grew from, newest first, without what other branches left."""
    line = [graph.get_state(config)]
    while line[-1].parent_config is not None:
        line.append(graph.get_state(line[-1].parent_config))
    return line


def last_whole_round(graph: Graph, config: RunnableConfig, workspace: Workspace) -> int:
    """The highest round that can be decided again, since every file that its past names is whole; 0 for none."""
    rounds = graph.get_state(config).values.get("round", 0)
    for number in range(rounds + 1, 0, -1):
        try:
            at = checkpoint_before(graph, config, workspace.folder, number)
            check_past(workspace, [each.values for each in line_of(graph, at.config)], number - 1)
        except NsloraError:  # never came so far, or something of it is damaged: what, was said already
            continue
        return number
    return 0
