"""Weights & Biases: as `WANDB_MODE` says; offline where nobody is logged in, so that nobody is asked."""

import os
import re
import struct
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import wandb

from nslora.graph.tracking.tracker import COLUMN_OF, Axis, Entry, Started, Status, TrackedRun

# W&B would send the command line, the user's and the host's name, the repository and the installed packages.
PRIVATE = {
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "disable_git": True,
    "save_code": False,
    "console": "off",
    "silent": True,
    "host": "",
    "program": "",
    "init_timeout": 20.0,  # s; the process cannot end while W&B waits for its server, by default for 90 s
    "x_transaction_log_flush_interval": 1.0,  # s; by default a kill loses the last 15 s of an offline run
}
HEADER, BLOCK = 7, 32768  # bytes: of a .wandb file and of each record in it; of a block of LevelDB's log format
WHOLE, LAST = 1, 4  # kinds of records in it


class WandbTracker:
    """Numbers and texts are rows of the history, artefacts are artefacts.

    A row's step is the number of its entry, since W&B takes no step twice and none that is smaller; plots go by
    `training_step` and `round`. How far it came is what W&B goes on with, or stands in the files of an offline run.
    """

    def __init__(self) -> None:
        self.host = wandb.run
        self.run: Any = self.host

    def start(self, run: TrackedRun) -> Started:
        """Begin a run, go on with the known one, or add to the one that the host has open."""
        if self.host is not None:
            self._define("nslora/")
            return Started(self.host.id, f"run {self.host.id} of project {self.host.project}, open already")
        folder = Path(os.environ.get("WANDB_DIR", run.folder))
        if self.run is None:
            self.run = self._begin(run, folder)
            self._define("")
        offline = bool(self.run.settings._offline)
        where = f"wandb sync {self.run.dir.removesuffix('/files')}" if offline else self.run.url
        sent = max(_steps(folder, self.run.id), default=0) if offline else self.run.step - 1
        return Started(self.run.id, f"run {self.run.id} ({where})", sent=max(0, sent))

    def _begin(self, run: TrackedRun, folder: Path) -> Any:
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        known = {name: value for name, value in PRIVATE.items() if name in wandb.Settings.model_fields}
        folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=run.project or os.environ.get("WANDB_PROJECT") or "nslora",
            id=run.known or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12],
            name=run.name,
            config=dict(run.params),
            dir=str(folder),
            resume="allow",
            reinit="create_new",  # leaves wandb.run to the host
            mode=mode,
            settings=wandb.Settings(**known),
        )

    def _define(self, before: str) -> None:
        plots: dict[Axis, tuple[str, ...]] = {"step": ("train",), "round": ("evaluation", "round", "cost", "result")}
        for axis, names in plots.items():
            column = f"{before}{COLUMN_OF[axis]}"
            self.run.define_metric(column, hidden=True)
            for name in names:
                self.run.define_metric(f"{before}{name}/*", step_metric=column)

    def log(self, entries: Sequence[Entry]) -> None:
        """Log rows."""
        for entry in entries:
            row = {**entry.metrics, **entry.texts, COLUMN_OF[entry.axis]: entry.step}
            if self.host is None:
                self.run.log(row, step=entry.number, commit=True)
            else:  # the host counts its own steps
                self.run.log({f"nslora/{name}": value for name, value in row.items()})

    def store(self, entry: Entry) -> None:
        """Keep a file or a folder."""
        assert entry.artifact is not None
        kind, _, name = entry.artifact.name.partition("/")
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{self.run.id}-{kind}-{name}"), type=kind)
        if entry.artifact.path.is_dir():
            artifact.add_dir(str(entry.artifact.path))
        else:
            artifact.add_file(str(entry.artifact.path))
        self.run.log_artifact(artifact)
        if self.host is None:
            self.run.log({COLUMN_OF[entry.axis]: entry.step}, step=entry.number, commit=True)

    def finish(self, status: Status) -> None:
        """End the run, unless it is the host's."""
        if self.host is None:
            self.run.finish(exit_code=0 if status == "finished" else 1)


def _steps(folder: Path, run: str) -> Iterator[int]:
    """The steps of all rows of an offline run, which has one file per process."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(folder.glob(f"wandb/offline-run-*-{run}/*.wandb")):
        for body in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            for item in record.history.item:
                if "_step" in (item.key, *item.nested_key):
                    yield int(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a .wandb file: LevelDB's log format behind a header."""
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if kind == 0 or place + HEADER + length > len(data):  # its writer was killed
            return
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""
