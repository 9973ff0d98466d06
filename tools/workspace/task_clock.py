"""Seconds that a task of the graph has worked, also in processes that ended before it did.

A node that is killed or stopped returns nothing, so its seconds would be lost to the state; under the same task id it
finds them here when it starts again.
"""

import json
import time
from pathlib import Path

from nslora.tools.files import write_json

SAVE_EVERY_S = 5.0  # the most that a kill can hide from the account
CLOCK_FILE = "clock.json"


class TaskClock:
    """The clock of the task that works now; one file per run, since nodes work one after the other."""

    def __init__(self, folder: Path, task_id: str) -> None:
        self._path, self._task_id = folder / CLOCK_FILE, task_id
        self.before_s = self._read()
        self._started = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Worked on this task so far, all processes together."""
        return self.before_s + time.monotonic() - self._started

    def tick(self) -> None:
        """Save, unless that was done a moment ago."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write down what was worked so far."""
        self._saved = time.monotonic()
        write_json(self._path, {"task": self._task_id, "seconds": self.seconds})

    def _read(self) -> float:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            return float(record["seconds"]) if self._task_id and record["task"] == self._task_id else 0.0
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: then it starts at nothing
            return 0.0
