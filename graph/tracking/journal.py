"""A run's journal, `tracking/events.jsonl`: all that trackers are to get, each thing once.

It is written as the run goes, by its own process, and read by one thread per tracker. So a tracker that is slow, or
away for a day, misses nothing, and memory holds nothing for it.
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from nslora.graph.tracking.tracker import Artifact, Axis, Entry

JOURNAL = "events.jsonl"


class Journal:
    """Appends entries, and knows which there are.

    Lines are handed to the operating system, and not flushed to the disk: they survive a kill of the process.

    Args:
        folder: The run's folder.

    Attributes:
        keys: Of all entries.
        last_number: Number of the last entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "tracking" / JOURNAL
        self.keys: set[str] = set()
        self.last_number = self._steps = 0
        self._before: dict[int, int] = {}  # by round: training steps of all rounds before it
        self._last_at = 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):  # its writer was killed
                break
            whole += len(line)
            self._know(json.loads(line))
        self._file.truncate(whole)

    def _know(self, record: Mapping[str, Any]) -> None:
        self.keys.add(record["key"])
        self.last_number += 1
        self._last_at = record["at"]
        if record["key"].startswith("step/"):
            _, number, done = record["key"].split("/")
            self._steps = max(self._steps, record["step"])
            self._before.setdefault(int(number), record["step"] - int(done))

    def add_step(self, number: int, done: int, metrics: Mapping[str, float]) -> None:
        """Append a training step, unless it is there; steps are counted through over all rounds.

        Args:
            number: Of the round.
            done: Steps done in this round, with this one.
            metrics: Its numbers.
        """
        step = self._before.setdefault(number, self._steps) + done
        self.add(f"step/{number}/{done}", "step", step, metrics)

    def add(
        self,
        key: str,
        axis: Axis,
        step: int,
        metrics: Mapping[str, float] | None = None,
        texts: Mapping[str, str] | None = None,
        artifact: tuple[str, str] | None = None,
    ) -> None:
        """Append an entry, unless one with this key is there.

        artifact: path from the run's folder, and name at the tracker.
        """
        if key in self.keys:
            return
        at = max(time.time(), self._last_at + 1e-6)
        record: dict[str, Any] = {"key": key, "at": at, "axis": axis, "step": step}
        record |= {"metrics": dict(metrics)} if metrics else {}
        record |= {"texts": dict(texts)} if texts else {}
        record |= {"artifact": artifact} if artifact else {}
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        self._file.flush()
        self._know(record)

    def forget(self, number: int) -> None:
        """Let the steps and the record of a round be appended again, because the run goes another way from there."""
        self.keys = {key for key in self.keys if not key.startswith((f"step/{number}/", f"round/{number}/"))}
        self._before.pop(number, None)

    def has_round(self, number: int) -> bool:
        """Whether the record of a round is there."""
        return any(key.startswith(f"round/{number}/") for key in self.keys)

    def close(self) -> None:
        """Append no more."""
        self._file.close()


class Reader:
    """Reads a journal from behind an entry, while it is written."""

    def __init__(self, journal: Journal, after: int) -> None:
        self.folder, self.number = journal.folder, 0
        self._file: IO[bytes] = journal.path.open("rb")
        while self.number < after and self._file.readline():
            self.number += 1

    def more(self, most: int) -> list[Entry]:
        """The next entries that are there."""
        return [entry for _, entry in zip(range(most), self._lines(), strict=False)]

    def _lines(self) -> Iterator[Entry]:
        while True:
            place, line = self._file.tell(), self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(place)
                return
            self.number += 1
            yield self._entry(json.loads(line))

    def _entry(self, record: Mapping[str, Any]) -> Entry:
        path, name = record.get("artifact") or ("", "")
        return Entry(
            number=self.number,
            at=record["at"],
            axis=record["axis"],
            step=record["step"],
            metrics=record.get("metrics", {}),
            texts=record.get("texts", {}),
            artifact=Artifact(self.folder / path, name) if path else None,
        )

    def close(self) -> None:
        """Read no more."""
        self._file.close()
