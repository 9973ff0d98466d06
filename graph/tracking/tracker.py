"""What a tracker is: four methods that a thread of its own calls, one file per tracker beside this one.

transformers' and TRL's `report_to` is not used. It would begin a tracker run for each training job and count its steps
from 0 again after a kill, and it knows no round, evaluation, decision or prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from nslora.tools.errors import SettingsError
from nslora.tools.named import object_named

Axis = Literal["step", "round"]  # training steps of the whole run; rounds, 0 for the start
Status = Literal["finished", "stopped", "failed"]
# What an axis is called in a row; trackio and W&B have a `step` of their own.
COLUMN_OF: dict[Axis, str] = {"step": "training_step", "round": "round"}
THREAD = "nslora-tracker-"  # how the threads' names begin in which trackers are called
# Each is named as its package, and as the extra that installs it.
KNOWN = {
    "mlflow": "nslora.graph.tracking.mlflow_tracker:MlflowTracker",
    "wandb": "nslora.graph.tracking.wandb_tracker:WandbTracker",
    "trackio": "nslora.graph.tracking.trackio_tracker:TrackioTracker",
    "tensorboard": "nslora.graph.tracking.tensorboard_tracker:TensorboardTracker",
}


@dataclass(frozen=True)
class Artifact:
    """A file or a folder of the run. name: where it lies at the tracker, such as `prompts/1f0c.md`."""

    path: Path
    name: str


@dataclass(frozen=True)
class Entry:
    """One thing that a run has to tell.

    Attributes:
        number: Of the run's entries, from 1 without a gap.
        at: Seconds since the epoch; each entry is later than the one before.
        axis: What `step` counts.
        step: The training step, or the round.
        metrics: Numbers, such as {"train/loss_nats": 0.5}.
        texts: Texts, such as {"decision/reason": "..."}.
        artifact: What is to be kept. An entry with an artifact has no metrics.
    """

    number: int
    at: float
    axis: Axis
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    artifact: Artifact | None = None


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of the run.

    Attributes:
        key: Unique among all runs of nslora.
        name: The name of the run's folder.
        project: What the user named; None if nothing.
        params: Settings, task and versions as text, by names such as `lora.rank`.
        folder: For files of the tracker.
        known: The tracker's own id of this run, if it was begun before.
        place: What `Started.place` was then.
    """

    key: str
    name: str
    project: str | None
    params: Mapping[str, str]
    folder: Path
    known: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Started:
    """What a tracker says when it has begun, or gone on with, its run.

    Attributes:
        id: Its id of the run, to go on with after a kill.
        where: Where a person finds it.
        place: What is needed beside the id to find it again, without any secret.
        sent: Number of the last entry that it holds; None if it cannot tell.
    """

    id: str
    where: str
    place: str | None = None
    sent: int | None = None


class Tracker(Protocol):
    """Keeps what a run tells.

    It is made without arguments in the thread that the run begins in, where it may look for a run that the host has
    open: it adds to that one, and does not end it. All methods are called by one other thread, and may raise anything:
    the tracker is then named, and tried again later. After a kill it gets the entries behind `Started.sent` again.
    """

    def start(self, run: TrackedRun) -> Started:
        """Begin a run, or go on with `run.known`."""
        ...

    def log(self, entries: Sequence[Entry]) -> None:
        """Keep numbers and texts."""
        ...

    def store(self, entry: Entry) -> None:
        """Keep a copy of the entry's artifact, which is there during this call."""
        ...

    def finish(self, status: Status) -> None:
        """End the run, unless it is the host's."""
        ...


def refuse_unknown(names: Sequence[str]) -> None:
    """Raise SettingsError if a tracker does not exist, or its package is not installed."""
    for name in names:
        if name not in KNOWN and ":" not in name:
            raise SettingsError(
                f"No tracker {name!r}; known are {', '.join(KNOWN)}, or your own class as 'package.module:Class'."
            )
        if name in KNOWN and find_spec(name) is None:
            raise SettingsError(f"The tracker {name} needs a package: pip install 'nslora[{name}]'.")
        if name not in KNOWN:
            object_named("tracker", name)


def made(name: str) -> Tracker:
    """The tracker of this name. Raises whatever its module raises."""
    tracker: Tracker = object_named("tracker", KNOWN.get(name, name))()
    return tracker
