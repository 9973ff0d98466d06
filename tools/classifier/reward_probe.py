"""Calls of the reward by the classifier: cached, counted and capped, with errors that name the row."""

import math
from collections.abc import Callable, Sequence

from nslora.tools.errors import NsloraError, RewardError
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example

RewardFunction = Callable[[Example, str], Score]

LARGEST_NOISE = 0.3  # a reward that varies more between two calls cannot show what a repair gains
PROBED_ROWS = 5  # replies that are scored twice to measure the noise of a reward
FURTHER_ROWS = 10  # more of them, if the first ones showed noise


class RewardProbe:
    """Asks the reward about replies to one row; `calls` counts the calls that no cached value saved.

    Attributes:
        cap: Most calls for this row.
        held_back: Calls of the cap that may not be spent yet.
    """

    def __init__(self, failure: Graded, reward: RewardFunction, cap: int) -> None:
        self.example, self.reward, self.cap = failure.example, reward, cap
        self.seen: dict[str, float] = {failure.reply: failure.score.value}
        self.calls = self.held_back = 0

    def __call__(self, reply: str | None) -> float | None:
        """Return the reward of a reply, or None if there is no reply or no call left."""
        if reply is None or (reply not in self.seen and self.calls >= self.cap - self.held_back):
            return None
        if reply not in self.seen:
            self.calls += 1
            self.seen[reply] = _value(self.reward, self.example, reply)
        return self.seen[reply]


def measure_tolerance(reward: RewardFunction, graded: Sequence[Graded], *, largest: float = LARGEST_NOISE) -> float:
    """Measure the noise of a reward by scoring a few replies twice.

    If the first `PROBED_ROWS` replies show noise, `FURTHER_ROWS` more are scored twice: a reward that is pure chance
    may agree with itself on a few rows.

    Args:
        reward: The reward; it must not answer from a cache.
        graded: Replies to score.
        largest: Largest accepted difference between two scores of one reply.

    Returns:
        Twice the largest difference on the first rows, or the largest difference on the further rows if that is more,
        but at most `largest`; 0.0 for a reward without noise.

    Raises:
        RewardError: Two scores of one reply differ by more than `largest`, or the reward fails.
    """
    further = PROBED_ROWS + FURTHER_ROWS
    worst = max((_difference(reward, row, largest) for row in graded[:PROBED_ROWS]), default=0.0)
    if worst == 0.0:
        return 0.0
    return min(largest, max([2 * worst, *(_difference(reward, row, largest) for row in graded[PROBED_ROWS:further])]))


def _difference(reward: RewardFunction, row: Graded, largest: float) -> float:
    """Difference between two scores of one reply."""
    first, second = (_value(reward, row.example, row.reply) for _ in range(2))
    if abs(first - second) > largest:
        raise RewardError(
            f"Row {row.example.id}: the reward returned {first:.3f} and then {second:.3f} for the same reply "
            f"{row.reply[:80]!r}, but scores of one reply may differ by at most {largest:g}; make the reward steadier."
        )
    return abs(first - second)


def _value(reward: RewardFunction, example: Example, reply: str) -> float:
    """Call the reward and check that it returned a number from 0 to 1."""
    row = f"Row {example.id}, reply {reply[:80]!r}"
    try:
        value = float(reward(example, reply).value)
    except NsloraError:
        raise
    except Exception as error:
        raise RewardError(f"{row}: the reward raised {type(error).__name__}: {error}; correct the reward.") from error
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise RewardError(f"{row}: the reward returned {value}, but it must return a number from 0 to 1.")
    return value
