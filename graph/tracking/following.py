"""Lets trackers follow a run: `Execution.stream` and `astream` open a Following around the graph's stream."""

import asyncio
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from langgraph.errors import GraphDrained

from nslora.graph.tracking.events import Events
from nslora.graph.tracking.journal import Journal
from nslora.graph.tracking.sender import LOG, Sender
from nslora.graph.tracking.tracker import Status, TrackedRun, Tracker, made
from nslora.nodes.shared.rounds import first_state_of
from nslora.tools.editor.redaction import environment_secrets, publishable, secrets_of
from nslora.tools.errors import first_line
from nslora.tools.workspace.record import read_run_file
from nslora.tools.workspace.report import PACKAGES
from nslora.tools.workspace.workspace import Workspace

SEEN = ("updates", "custom")  # stream modes that tell all there is to track


class Following:
    """The trackers of a run, while its graph is at work. Without trackers it does nothing.

    No method raises: a tracker's failure is not the run's.

    Args:
        workspace: The run's workspace.
        state: The run's state as the stream begins.
        trackers: By name.
    """

    def __init__(self, workspace: Workspace, state: Mapping[str, Any] | None, trackers: Mapping[str, Tracker]) -> None:
        self.timeout_s = workspace.settings.tracking.timeout_s
        self.senders: list[Sender] = []
        self.journal: Journal | None = None
        self.events: Events | None = None
        try:
            if trackers:
                self._open(workspace, state or {}, trackers)
        except Exception as error:
            self._give_up(error)

    def _open(self, workspace: Workspace, state: Mapping[str, Any], trackers: Mapping[str, Tracker]) -> None:
        folder, settings = workspace.folder, workspace.settings.tracking
        secrets = (*environment_secrets(), *secrets_of([workspace.editor_chat]))
        record = read_run_file(folder)
        self.journal = Journal(folder)
        self.events = Events(self.journal, state or first_state_of(workspace), settings, secrets)
        run = TrackedRun(
            key=record["thread"],
            name=folder.name,
            project=settings.project,
            params=params_of(record, secrets),
            folder=folder / "tracking",
        )
        self.senders = [
            Sender(name, each, self.journal, run, secrets=secrets, timeout_s=self.timeout_s, notify=workspace.notify)
            for name, each in trackers.items()
        ]

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.events is not None and self.events.finished

    def modes(self, wanted: Sequence[Any]) -> list[Any]:
        """The stream modes to ask the graph for: those that are wanted, and those that are followed."""
        return [*wanted, *(mode for mode in SEEN if self.events and mode not in wanted)]

    def saw(self, mode: str, part: Any) -> None:
        """Take note of a part of the stream."""
        if self.events is None:
            return
        try:
            self.events.saw(mode, part)
        except Exception as error:
            self._give_up(error)
        for each in self.senders:
            each.wake()

    def close(self, status: Status) -> None:
        """Send what is left, for at most `tracking.timeout_s`."""
        if self.finished:
            self.saw("updates", {"finish": {"status": "finished"}})  # files of the result that came later
        until = time.monotonic() + self.timeout_s
        for each in self.senders:
            each.end(status)
        for each in self.senders:
            each.wait(until)
        if self.journal is not None:
            self.journal.close()

    def _give_up(self, error: Exception) -> None:
        """Follow no longer, as when the disk is full."""
        self.events = None
        LOG.warning("The run is tracked no longer: %s: %s", type(error).__name__, first_line(error))


def trackers_of(workspace: Workspace) -> dict[str, Tracker]:
    """The trackers of a run, made; one that cannot be had is named. Imports their packages, which takes seconds.

    A replay has none: it is the same run once more.
    """
    found: dict[str, Tracker] = {}
    if not workspace.settings.track or (read_run_file(workspace.folder).get("origin") or {}).get("kind") == "replay":
        return found
    for name in workspace.settings.track:
        try:
            found[name] = made(name)
        except Exception as error:
            LOG.warning("The tracker %s cannot be had: %s. The run goes on without it.", name, first_line(error))
    return found


@contextmanager
def following(
    workspace: Workspace, state: Callable[[], Mapping[str, Any] | None], trackers: Mapping[str, Tracker]
) -> Iterator[Following]:
    """A Following that is closed at the end of the block. See there; state: asks for it, if there are trackers."""
    found = Following(workspace, state() if trackers else None, trackers)
    status: Status = "failed"
    try:
        yield found
        status = "finished" if found.finished else "stopped"
    except (GraphDrained, GeneratorExit, KeyboardInterrupt, asyncio.CancelledError):
        status = "stopped"
        raise
    finally:
        found.close(status)


def params_of(record: Mapping[str, Any], secrets: Sequence[str]) -> dict[str, str]:
    """Settings, task and versions as text, by names such as `lora.rank`. record: the run's."""
    task = {name: record["task"][name] for name in ("name", "hash", "source")}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    told = {**record["settings"], "task": task, "version": versions, "origin": record.get("origin")}
    return {name: publishable(str(value), secrets) for name, value in _leaves(told) if value not in (None, [], "")}


def _leaves(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _leaves(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return found
