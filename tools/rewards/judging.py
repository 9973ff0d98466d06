"""What the loop knows of a check that asks a chat model, and how far such a judge agrees with labelled rows."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nslora.tools.rewards.checks import Check

if TYPE_CHECKING:
    from nslora.tools.schema import Example

RESAMPLES = 999
KAPPA, SPEARMAN = "Cohen's kappa", "Spearman's rho"
PASSES = 0.5  # the score from which on a judge agrees with the higher of two labels


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with labelled rows.

    Attributes:
        measure: Cohen's kappa if the labels have two values, else Spearman's rank correlation.
        value: In [-1, 1]; None if the judge gave all rows one score, so that nothing can be said.
        interval: 95 % bootstrap interval over the rows; None as above.
        rows: Labelled rows.
    """

    measure: str
    value: float | None
    interval: tuple[float, float] | None
    rows: int

    def __str__(self) -> str:
        if self.value is None or self.interval is None:
            return f"{self.measure} is undefined: the judge gave the same score to all {self.rows} labelled rows"
        low, high = self.interval
        return f"{self.measure} {self.value:.2f}, 95 % interval [{low:.2f}, {high:.2f}], on {self.rows} labelled rows"


class JudgingCheck(Check):
    """A check that asks a chat model, so each new judgement costs money."""

    revision: ClassVar[int] = 1

    @property
    @abstractmethod
    def judge(self) -> str:
        """Name of the chat model."""

    @property
    @abstractmethod
    def most_calls(self) -> int:
        """Most calls for one reply, if each gives a usable verdict."""

    @property
    @abstractmethod
    def calls(self) -> Any:
        """The `JudgeCalls` of the chat model, which is connected when it is asked first."""

    @property
    def spent(self) -> Any:
        """The `Usage` of the run so far."""
        return self.calls.spent

    @property
    def judged(self) -> tuple[int, int]:
        """How many replies were judged in the run, and on how many of them the samples differed."""
        return self.calls.judged()  # type: ignore[no-any-return]

    def connect(self) -> None:
        """Make the chat model, without asking it. Raises RewardError, or SettingsError if a cap lacks a price."""
        _ = self.calls.calls

    def work_in(self, place: Any) -> None:
        """Take caps, records and caches from this `JudgePlace` from now on."""
        self.calls.work_in(place)

    @abstractmethod
    def unknown(self, pairs: Sequence[tuple[Example, str]]) -> int:
        """Count the (row, reply) pairs that no judgement is known of."""

    @abstractmethod
    def labelled_pairs(self) -> list[tuple[Example, str]]:
        """The labelled rows with their replies; empty without `labelled`. Raises RewardError or TaskError."""

    @abstractmethod
    def agreement(self) -> Agreement | None:
        """Judge the labelled rows and compare; None without `labelled`. Raises RewardError."""


def agreement_of(scores: Sequence[float], labels: Sequence[float]) -> Agreement:
    """Compare a judge's scores, in [0, 1], with labels of at least two values."""
    import numpy as np
    from scipy.stats import bootstrap

    given, wanted = np.asarray(scores, float), np.asarray(labels, float)
    two = len(set(labels)) == 2
    if two:
        given, wanted = (given >= PASSES) * 1.0, (wanted == wanted.max()) * 1.0
    measure, statistic = (KAPPA, _kappa) if two else (SPEARMAN, _rho)
    if len(set(given.tolist())) < 2:
        return Agreement(measure, None, None, len(labels))
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resamples with one value are no number, and are left out below
        found = bootstrap(
            (given, wanted), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=0
        ).bootstrap_distribution
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Agreement(measure, float(statistic(given, wanted)), (float(low), float(high)), len(labels))


def _kappa(one: Any, other: Any, axis: int = -1) -> Any:
    """Cohen's kappa of two arrays of 0 and 1; sklearn's takes 5 ms for each of a thousand resamples."""
    p, q = one.mean(axis), other.mean(axis)
    chance = p * q + (1 - p) * (1 - q)
    return ((one == other).mean(axis) - chance) / (1 - chance)


def _rho(one: Any, other: Any, axis: int = -1) -> Any:
    """Spearman's correlation, for many resamples at once."""
    from scipy.stats import rankdata

    x, y = (ranks - ranks.mean(axis, keepdims=True) for ranks in (rankdata(one, axis=axis), rankdata(other, axis=axis)))
    return (x * y).sum(axis) / ((x**2).sum(axis) * (y**2).sum(axis)) ** 0.5
