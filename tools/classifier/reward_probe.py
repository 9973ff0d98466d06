"""Asking a reward about repaired replies: cached, counted, capped, and named by row where it misbehaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nslora.tools.errors import NsloraError, RewardError

if TYPE_CHECKING:
    from nslora.tools.rewards.score import Graded, Score
    from nslora.tools.schema import Example


LARGEST_NOISE = 0.3  # a larger change of mind about one reply cannot be told from a repair

FURTHER = 3  # times as many rows are asked twice where the first ones showed noise


class Asker:
    """Asks the reward about one row: cached, counted, capped. held_back: calls of the cap that may not be spent now."""

    def __init__(self, failure: Graded, reward: Callable[[Example, str], Score], cap: int) -> None:
        self.example, self.reward, self.cap = failure.example, reward, cap
        self.seen: dict[str, float] = {failure.reply: failure.score.value}
        self.calls = self.held_back = 0

    def __call__(self, reply: str | None) -> float | None:
        """Reward of the reply; None where there is no reply or no call left."""
        if reply is None:
            return None
        if reply not in self.seen:
            if self.calls >= self.cap - self.held_back:
                return None
            self.calls += 1
            self.seen[reply] = self.fresh(reply)
        return self.seen[reply]

    def fresh(self, reply: str) -> float:
        """Reward of the reply, asked anew and checked."""
        row = f"Row {self.example.id}, reply {reply[:80]!r}"
        try:
            value = float(self.reward(self.example, reply).value)
        except NsloraError:
            raise
        except Exception as error:
            raise RewardError(f"{row}: the reward raised {type(error).__name__}: {error}; mend it.") from error
        if not math.isfinite(value) or not 0.0 <= value <= 1.0:
            raise RewardError(f"{row}: the reward returned {value}; it must be a number from 0 to 1.")
        return value


def measure_tolerance(
    reward: Callable[[Example, str], Score], graded: Sequence[Graded], *, rows: int = 5, largest: float = LARGEST_NOISE
) -> float:
    """Noise of a reward: the largest change of mind over a few rows asked twice, doubled; 0.0 for a firm one.

    One that wavers is asked about further rows, since a reward that means nothing may agree with itself by chance.
    `reward` must not answer from a cache. Raises RewardError where it changes its mind by more than `largest`.
    """
    worst = max((_change_of_mind(reward, row, largest) for row in graded[:rows]), default=0.0)
    if worst == 0.0:
        return 0.0
    further = graded[rows : rows * FURTHER]
    return min(largest, max([2 * worst, *(_change_of_mind(reward, row, largest) for row in further)]))


def _change_of_mind(reward: Callable[[Example, str], Score], row: Graded, largest: float) -> float:
    asker = Asker(row, reward, cap=2)
    first, second = (asker.fresh(row.reply) for _ in range(2))
    if abs(first - second) > largest:
        raise RewardError(
            f"Row {row.example.id}: the reward gave {first:.3f} and then {second:.3f} for the same reply "
            f"{row.reply[:80]!r}; a change of at most {largest:g} can be worked with, so make it steadier."
        )
    return abs(first - second)
