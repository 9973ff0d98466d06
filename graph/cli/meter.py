"""How long a run may still take, and what it has cost so far."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from nslora.tools.tasks.task import Task
from nslora.tools.workspace.budget import expected_seconds, spent_of
from nslora.tools.workspace.settings import RunSettings


class Meter:
    """Reads a run's stream. Before the first evaluation nothing is known of its time.

    Args:
        task: The run's task.
        settings: Its settings.
        state: Its newest state; None before the first checkpoint.
    """

    def __init__(self, task: Task, settings: RunSettings, state: Mapping[str, Any] | None = None) -> None:
        self.task, self.settings = task, settings
        self.rounds: list[Mapping[str, Any]] = []
        self._evaluation_s, self._spent_s, self._proposed = 0.0, 0.0, 0.0
        self._left_s: float | None = None
        self._since = time.monotonic()
        self.saw(state or {})

    def saw(self, changes: Mapping[str, Any]) -> None:
        """Take note of what a node changed, or of a whole state."""
        self.rounds += changes.get("rounds") or ()
        self._spent_s += changes.get("wall_s") or 0.0
        for name in ("start_measured", "kept_measured", "measured"):
            self._evaluation_s = max(self._evaluation_s, (changes.get(name) or {}).get("wall_s", 0.0))
        if "proposal" in changes:
            proposal = changes["proposal"] or {}
            self._proposed = float(proposal.get("editor", {}).get("cost", 0.0))
        if self._evaluation_s:
            self._left_s, self._since = self._expected_s(), time.monotonic()

    @property
    def left_s(self) -> float | None:
        """Seconds that the run takes at most if its steps take as long as before; None before the first evaluation."""
        return None if self._left_s is None else max(0.0, self._left_s - (time.monotonic() - self._since))

    @property
    def cost(self) -> float:
        """What the editor and the judges have cost so far, in the currency of the price table."""
        judges = sum(check.spent.cost for check in self.task.reward.judges)
        return float(spent_of(self.rounds, self._spent_s).cost + self._proposed + judges)

    def _expected_s(self) -> float:
        expected = expected_seconds(self.rounds, self._evaluation_s, self.task, self.settings)
        rounds_left = max(0, self.settings.max_rounds - len(self.rounds))
        left = rounds_left * (max(expected.update_s.values()) + expected.evaluate_s) + expected.finish_s
        return left if self.settings.max_seconds is None else min(left, self.settings.max_seconds - self._spent_s)

    def line(self) -> str:
        """For the end of a progress line: `round 2, max 12 min left, cost 0.12`."""
        words: Sequence[str] = (
            f"round {len(self.rounds) + 1}" if self._evaluation_s else "",
            f"max {span(self.left_s)} left" if self.left_s is not None else "",
            f"cost {self.cost:.2f}" if self.cost else "",
        )
        return ", ".join(word for word in words if word)


def span(seconds: float) -> str:
    """Short: 40 s, 12 min, 2.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
