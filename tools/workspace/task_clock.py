"""Seconds at work of a task of the graph (one call of a node), summed over the processes that worked on it.

A node that is killed or stopped returns nothing, so the state loses its seconds. The node has the same task id when it
starts again, and finds its seconds here.
"""

import json
import time
from pathlib import Path

from nslora.tools.files import write_json

SAVE_EVERY_S = 5.0  # the most seconds that a kill loses
CLOCK_FILE = "clock.json"


class TaskClock:
    """The clock of the task that works now. A run has one file for it, since its nodes run one after the other."""

    def __init__(self, folder: Path, task_id: str) -> None:
        self._path, self._task_id = folder / CLOCK_FILE, task_id
        self.before_s = self._read()
        self._started = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds at work on this task so far, in all processes."""
        return self.before_s + time.monotonic() - self._started

    def tick(self) -> None:
        """Save, at most every `SAVE_EVERY_S` seconds."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the seconds to disk."""
        self._saved = time.monotonic()
        write_json(self._path, {"task": self._task_id, "seconds": self.seconds})

    def _read(self) -> float:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            return float(record["seconds"]) if self._task_id and record["task"] == self._task_id else 0.0
        except (OSError, ValueError, KeyError, TypeError):  # no file yet, or a damaged one: start at 0
            return 0.0
