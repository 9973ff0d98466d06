"""trackio: a run in its local store, at a Space or at a server, as trackio's environment variables say."""

import builtins
import threading
from collections.abc import Sequence
from typing import Any

import trackio
import trackio.run
import trackio.utils
from trackio import context_vars

from nslora.graph.tracking.tracker import COLUMN_OF, THREAD, Entry, Started, Status, TrackedRun


def _print(*words: Any, **options: Any) -> None:
    """trackio prints to the standard output, which belongs to the run's console and its JSON lines."""
    if not threading.current_thread().name.startswith(THREAD):
        builtins.print(*words, **options)


for _module in (trackio, trackio.run, trackio.utils):
    vars(_module)["print"] = _print


class TrackioTracker:
    """Numbers and texts are rows, artefacts are artefacts.

    A row's step is the number of its entry: trackio goes on behind the largest step that it holds, so no row is doubled
    after a kill. Plots can go by the columns `training_step` and `round`.
    """

    def __init__(self) -> None:
        self.host = context_vars.current_run.get()
        self.run: Any = self.host

    def start(self, run: TrackedRun) -> Started:
        """Begin a run, go on with the known one, or add to the one that the host has open."""
        if self.host is not None:
            return Started(self.host.id, f"run {self.host.name} of project {self.host.project}, open already")
        name = run.known or f"{run.name}-{run.key[-6:]}"
        if self.run is None:
            self.run = trackio.init(
                project=run.project or "nslora",
                name=name,
                config=dict(run.params),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        # What trackio itself goes on with; without the attribute, nslora's own record counts.
        following = getattr(self.run, "_next_step", None)
        sent = None if following is None else max(0, following - 1)
        return Started(name, f"run {name} of project {self.run.project}", sent=sent)

    def log(self, entries: Sequence[Entry]) -> None:
        """Log rows."""
        for entry in entries:
            row = {**entry.metrics, **entry.texts, COLUMN_OF[entry.axis]: entry.step}
            if self.host is None:
                self.run.log(row, step=entry.number)
            else:  # the host counts its own steps
                self.run.log({f"nslora/{name}": value for name, value in row.items()})

    def store(self, entry: Entry) -> None:
        """Keep a file or a folder."""
        assert entry.artifact is not None
        kind, _, name = entry.artifact.name.partition("/")
        self.run.log_artifact(entry.artifact.path, name=f"{self.run.name}-{kind}-{name}", type=kind)
        if self.host is None:
            self.run.log({COLUMN_OF[entry.axis]: entry.step}, step=entry.number)

    def finish(self, status: Status) -> None:
        """Write what is left, unless the run is the host's."""
        if self.host is None:
            self.run.finish()
