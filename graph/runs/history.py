"""The past of a run in its checkpoints: which checkpoint decided a round, its ancestors, and which files are whole."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, DeltaChannelHistory
from langgraph.types import StateSnapshot

from nslora.graph.build import Graph
from nslora.graph.runs.integrity import check_past
from nslora.tools.errors import LostRoundsError, NsloraError, RunError
from nslora.tools.files import quoted
from nslora.tools.workspace.workspace import Workspace


def past_of(line: Sequence[StateSnapshot], folder: Path, number: int) -> list[StateSnapshot]:
    """The part of a run's line from which round `number` was decided, newest first; for the round after the last, that
    of the end.

    Round 0 is the first evaluation. Raises RunError if the run never came so far, or has no checkpoints here.
    """
    if number < 0:
        raise RunError(f"Round {number}: wanted a round from 1, or 0 for the first evaluation.")
    if line[0].metadata is None:
        raise RunError(
            f"{folder} has no checkpoints here: if a server or a checkpointer of your own has them, its history and "
            "update_state are the way back."
        )
    # In round 0 a proposal waits when the first update is to be measured, and none when the start is.
    done = [
        i
        for i, each in enumerate(line)
        if each.values.get("round") == max(0, number - 1) and not each.values.get("proposal")
    ]
    for wanted in ("classify", "finish") if number > 0 else ("evaluate",):
        # Newest first: what a fork changed before it decided is part of what it decided from.
        if (found := next((i for i in done if wanted in line[i].next), None)) is not None:
            return list(line[found:])
    if number <= line[0].values.get("round", -1) + 1 and (line[-1].metadata or {}).get("source") != "input":
        raise LostRoundsError(
            f"{folder} has lost the checkpoints before round {number}, which were pruned or have expired: fork at a "
            "later round, or go on with the newest state (nslora resume)."
        )
    raise RunError(f"{folder} never came to round {number}: name an earlier one (nslora show {quoted(folder)}).")


def line_of(graph: Graph, config: RunnableConfig) -> list[StateSnapshot]:
    """A checkpoint and all that it grew from, newest first, without what other branches left."""
    if not isinstance(graph.checkpointer, BaseCheckpointSaver):
        raise RunError("The graph has no checkpointer, so that it has no history: compile it with one.")
    with _without_collection():
        saver = _Reading(graph.checkpointer, config)
        reading, line = graph.copy({"checkpointer": saver}), [saver.get_tuple(config)]
        while (last := line[-1]) is not None and last.parent_config is not None:
            line.append(saver.get_tuple(last.parent_config))
        oldest_first = [reading.get_state(each.config) for each in reversed(line) if each is not None]
    return oldest_first[::-1] or [graph.get_state(config)]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Make many objects that stay: the collector would look at all of them again and again, a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Reading(BaseCheckpointSaver[Any]):
    """The checkpoints of one thread, read once: one after the other, each would read its ancestors again."""

    def __init__(self, saver: BaseCheckpointSaver[Any], config: RunnableConfig) -> None:
        super().__init__(serde=saver.serde)
        thread = {"thread_id": config["configurable"]["thread_id"], "checkpoint_ns": ""}
        listed = saver.list({"configurable": thread})  # the newest first
        self._tuples = {each.checkpoint["id"]: each for each in listed}
        self._histories: dict[tuple[str, str], DeltaChannelHistory] = {}

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        wanted = config["configurable"].get("checkpoint_id")
        return self._tuples.get(wanted) if wanted else next(iter(self._tuples.values()), None)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What was written on the way to a checkpoint: that of its parent, if it was asked for before, and one more."""
        asked = self.get_tuple(config)
        parent = self.get_tuple(asked.parent_config) if asked and asked.parent_config else None
        found: dict[str, DeltaChannelHistory] = {}
        for channel in channels:
            before = self._histories.get((parent.checkpoint["id"], channel)) if parent else None
            if parent is None or before is None or channel in parent.checkpoint["channel_values"]:
                found |= super().get_delta_channel_history(config=config, channels=[channel])
            else:
                more = [each for each in parent.pending_writes or () if each[1] == channel]
                found[channel] = {**before, "writes": [*before["writes"], *more]}
            if asked:
                self._histories[asked.checkpoint["id"], channel] = found[channel]
        return found


def last_whole_round(graph: Graph, config: RunnableConfig, workspace: Workspace) -> int:
    """The highest round that can be decided again, since every file that its past names is whole; 0 for none."""
    line = line_of(graph, config)
    for number in range(line[0].values.get("round", 0) + 1, 0, -1):
        try:
            check_past(workspace, [each.values for each in past_of(line, workspace.folder, number)], number - 1)
        except NsloraError:  # never came so far, or something of it is damaged: what, was said already
            continue
        return number
    return 0
