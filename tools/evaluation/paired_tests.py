"""Paired statistics by question: is the new candidate better than the kept one on the very same rows?

The test is the one-sided sign-flip permutation test (Fisher 1935; Good, Permutation Tests, 2000): under "no change",
each row's difference is as likely to have either sign. It assumes no distribution, so it fits rewards of 0 and 1 as
well as graded ones. Intervals are paired percentile bootstraps (Efron 1979), by row.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

KEEP_TEST = "one-sided sign-flip permutation test, paired by question"
TIE = 1e-9  # rewards are means of a few checks; smaller differences are rounding
EXACT_ROWS = 16  # 2**16 sign patterns are enumerated; beyond, Monte Carlo
CHUNK = 4_000_000  # numbers held at once, 32 MB

REWARDS = (0.0, 1.0)  # bounds of a value
TAIL = (1 - 0.95) / 2  # on each side of a 95 % interval

Floats = npt.NDArray[np.float64]


def mean(values: Sequence[float]) -> float:
    """The mean; 0.0 of no values."""
    return float(sum(values) / len(values)) if values else 0.0


def bootstrap_interval(
    values: Sequence[float],
    *,
    bounds: tuple[float, float] | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, rows drawn with replacement, and at least as wide as `with_unseen`.

    values: (n,), one per question, rewards or differences of them. bounds: the least and the most that a value can be;
    None for differences: as much as any of them, either way, so that what is the same stays [0, 0].
    Raises ValueError if there are none.
    """
    rows = _finite(values)
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // rows.size)
    means: list[Floats] = []
    for start in range(0, samples, step):
        drawn = generator.integers(0, rows.size, size=(min(step, samples - start), rows.size))
        means.append(rows[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [TAIL, 1 - TAIL])
    most = float(np.abs(rows).max())
    return with_unseen((float(low), float(high)), float(rows.mean()), rows.size, bounds=bounds or (-most, most))


def with_unseen(
    interval: tuple[float, float], center: float, rows: int, *, bounds: tuple[float, float]
) -> tuple[float, float]:
    """The interval of a mean, widened by what so few rows may not have shown.

    A bootstrap draws only values that came: from 0 of 6 it says [0, 0]. But a share q of all questions stays out of n
    rows with probability (1 - q)^n, so q = 1 - TAIL^(1 / n) of them may be as bad, or as good, as can be
    (Hanley and Lippman-Hand 1983; for 0 of n this is the exact binomial bound). With 60 rows q is 0.06, and of pass
    rates only those near 0 and 1 get another interval. 95 % intervals of rates from 0.02 to 0.95 with 5 to 60 rows hold
    the true one with a probability of 0.92 to 1.00, summed over all outcomes; without, of 0.10 to 0.98.
    """
    unseen = 1 - TAIL ** (1 / rows)
    return (
        min(interval[0], (1 - unseen) * center + unseen * bounds[0]),
        max(interval[1], (1 - unseen) * center + unseen * bounds[1]),
    )


def sign_flip_p_value(differences: Sequence[float], *, samples: int = 10_000, seed: int = 0) -> float:
    """P(a random choice of signs gives at least this sum); ties carry no sign and are left out. 1.0 if all tie.

    Exact up to 16 rows that differ, else Monte Carlo with (1 + hits) / (1 + samples), which never understates
    (Phipson and Smyth 2010).
    """
    values = _finite(differences)
    moved = values[np.abs(values) > TIE]
    if moved.size == 0:
        return 1.0
    observed = float(moved.sum()) - TIE
    if moved.size <= EXACT_ROWS:
        sums = np.zeros(1)
        for size in np.abs(moved):
            sums = np.concatenate([sums + size, sums - size])
        return float(np.mean(sums >= observed))
    generator = np.random.default_rng(seed)
    step, hits = max(1, CHUNK // moved.size), 0
    for start in range(0, samples, step):
        signs = generator.integers(0, 2, size=(min(step, samples - start), moved.size)) * 2.0 - 1.0
        hits += int(np.sum(signs @ np.abs(moved) >= observed))
    return (1 + hits) / (1 + samples)


def p_values_of_several(gains: Sequence[Sequence[float]], *, samples: int = 10_000, seed: int = 0) -> list[float]:
    """The sign-flip p-value of each candidate's gains over one start, for having looked at all of them.

    gains: (candidates, rows), new less start on the same rows. Of ten candidates that change nothing, one seems to by
    chance; so each is held against the best that flipped signs give any of them, the rows of all flipped together and
    the sums in units of their own spread (single-step max-T, Westfall and Young 1993). Candidates that are alike cost
    little more than one. With one candidate this is `sign_flip_p_value`, beyond 16 rows but for Monte Carlo noise.
    """
    values = np.stack([_finite(row) for row in gains])
    values = np.where(np.abs(values) > TIE, values, 0.0)[:, np.any(np.abs(values) > TIE, axis=0)]
    if values.shape[1] == 0:
        return [1.0] * len(values)
    spread = np.sqrt((values**2).sum(axis=1, keepdims=True))
    units = np.divide(values, spread, out=np.zeros_like(values), where=spread > 0)
    observed = units.sum(axis=1) - TIE
    count = values.shape[1]
    exact = count <= EXACT_ROWS
    generator = np.random.default_rng(seed)
    total = 2**count if exact else samples
    step, hits = max(1, CHUNK // count), np.zeros(len(values))
    for start in range(0, total, step):
        size = min(step, total - start)
        if exact:
            signs = (np.arange(start, start + size)[:, None] >> np.arange(count) & 1) * 2.0 - 1.0
        else:
            signs = generator.integers(0, 2, size=(size, count)) * 2.0 - 1.0
        hits += (np.max(signs @ units.T, axis=1)[:, None] >= observed).sum(axis=0)
    found = hits / total if exact else (1 + hits) / (1 + total)
    return [float(p) if moved else 1.0 for p, moved in zip(found, spread[:, 0] > 0, strict=True)]


def paired_differences(old: Sequence[float], new: Sequence[float]) -> Floats:
    """new - old by row, (n,). Raises ValueError if the lengths differ or a value is not finite."""
    if len(old) != len(new):
        raise ValueError(f"{len(old)} old and {len(new)} new rewards came; they must be of the same rows.")
    return _finite(new) - _finite(old)


def _finite(values: Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("No rows came; give at least one reward per candidate.")
    if not np.isfinite(array).all():
        raise ValueError(f"Row {int(np.argmin(np.isfinite(array))) + 1} is not a finite number; check the reward.")
    return array
