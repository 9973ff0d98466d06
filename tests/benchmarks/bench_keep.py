"""Costs and benefits of the significance level of keep-or-drop: a simulation with the project's own test.

Each simulated run draws validation rows from a large population of rows that pass or fail. It then proposes updates one
after the other. Each update repairs a share of the failing rows and breaks a share of the passing ones; the shares come
from one of four mixes. The test sees only the validation rows. Three figures:

- gain: the share of the population that passes under the candidate with the highest validation reward, after twelve
  updates. A strict level stops progress.
- false keeps: how often at least one of four updates is kept if updates only reshuffle which rows pass. A lax level
  changes a model that needs no change. Each keep also reopens the other kind of update, which costs rounds.
- false results: how often a run ends with a changed result if no update helps: by the corrected test of the final
  choice and, for comparison, by an uncorrected test of each candidate. Here more rows flip, and half or more pass at
  the start: if few rows pass, luck has little effect.

The default is the laxest level at which at most one run in ten has a false keep, at 30 rows and at 100.
"""

import itertools
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
from form import Figure, figure, publish

from nslora.tools.evaluation.acceptance import KeepSettings
from nslora.tools.evaluation.paired_tests import p_values_of_several, sign_flip_p_value

LEVELS = (0.02, 0.05, 0.10, 0.20, 0.30, 0.45)
ROWS = (10, 30, 100)
ROUNDS, RUNS = 12, 1000
START = 0.3  # share of the population that passes
IDLE_ROUNDS = 4  # until both kinds are saturated if no update helps
LUCKY = ((30, 0.5, 0.3), (30, 0.7, 0.2), (100, 0.5, 0.1), (100, 0.5, 0.3))  # rows, share that pass, share that break
LOOKS, RESULT_RUNS = (4, 6), 400  # the goal is the level; results missed it by up to 0.02 (2026-11-26)
FALSE_KEEPS = 0.05  # set before the first run; the default level misses it with 100 rows (5.7 %, 2026-11-25)
Random = np.random.Generator
Mix = Callable[[Random], tuple[float, float]]


def big_steps(draw: Random) -> tuple[float, float]:
    """Every third update repairs much, as the first updates of `handbook` do; the others change few rows."""
    return (draw.uniform(0.3, 0.9), 0.03) if draw.random() < 1 / 3 else (draw.uniform(0, 0.1), draw.uniform(0, 0.1))


def small_steps(draw: Random) -> tuple[float, float]:
    """Half of the updates repair more rows than they break; the other half break more."""
    good, bad = draw.uniform(0.05, 0.25), draw.uniform(0.0, 0.1)
    return (good, bad) if draw.random() < 1 / 2 else (bad, good)


def mostly_harm(draw: Random) -> tuple[float, float]:
    """One update in six repairs more than it breaks; the others break more."""
    good, bad = draw.uniform(0.1, 0.4), draw.uniform(0.0, 0.05)
    return (good, bad) if draw.random() < 1 / 6 else (bad, good)


def reshuffle(draw: Random) -> tuple[float, float]:
    """As many rows repaired as broken."""
    breaks = draw.uniform(0.0, 0.1)
    return breaks * START / (1 - START), breaks


MIXES: dict[str, Mix] = {"big steps": big_steps, "small steps": small_steps, "mostly harm": mostly_harm}


@cache
def p_value(won: int, lost: int) -> float:
    return sign_flip_p_value([1.0] * won + [-1.0] * lost)


def run(level: float, rows: int, mix: Mix, rounds: int, draw: Random) -> tuple[float, int]:
    """Share of the population that passes at the end of one run, and the number of kept updates."""
    passing, share, kept = draw.random(rows) < START, START, 0
    best = (float(passing.mean()), share)
    for _ in range(rounds):
        repairs, breaks = mix(draw)
        flips = draw.random(rows)
        after = np.where(passing, flips >= breaks, flips < repairs)
        new_share = share * (1 - breaks) + (1 - share) * repairs
        best = max(best, (float(after.mean()), new_share), key=lambda each: each[0])
        won, lost = int((after & ~passing).sum()), int((passing & ~after).sum())
        if won > lost and p_value(won, lost) <= level:
            passing, share, kept = after, new_share, kept + 1
    return best[1], kept


def false_result(rows: int, start: float, breaks: float, looks: int, draw: Random) -> tuple[bool, bool]:
    """Whether a run in which no update helps ends with a changed result: with the correction, and without."""
    settings = KeepSettings()
    begun = draw.random(rows) < start
    kept, gains = begun, []
    for _ in range(looks):
        flips = draw.random(rows)
        after = np.where(kept, flips >= breaks, flips < breaks * start / (1 - start))
        gains.append((after.astype(float) - begun).tolist())
        won, lost = int((after & ~kept).sum()), int((kept & ~after).sum())
        if won > lost and p_value(won, lost) <= settings.level:
            kept = after
    alone = [p_value(gain.count(1.0), gain.count(-1.0)) for gain in gains if sum(gain) > 0]
    return (
        min(p_values_of_several(gains, samples=2000)) <= settings.result_level,
        any(p <= settings.level for p in alone),
    )


def main() -> int:
    figures: list[Figure] = []
    for rows, level in itertools.product(ROWS, LEVELS):
        for name, mix in MIXES.items():
            ends = [run(level, rows, mix, ROUNDS, np.random.default_rng(seed))[0] for seed in range(RUNS)]
            figures.append(figure(f"{rows} rows, level {level:g}, {name}: share that passes", float(np.mean(ends))))
        keeps = [run(level, rows, reshuffle, IDLE_ROUNDS, np.random.default_rng(seed))[1] for seed in range(RUNS)]
        judged = level == KeepSettings().level and rows >= 30
        figures.append(
            figure(
                f"{rows} rows, level {level:g}, nothing helps: runs with a false keep",
                float(np.mean([each > 0 for each in keeps])),
                at_most=FALSE_KEEPS if judged else None,
            )
        )
    for (rows, start, breaks), looks in itertools.product(LUCKY, LOOKS):
        ends = [false_result(rows, start, breaks, looks, np.random.default_rng(seed)) for seed in range(RESULT_RUNS)]
        of = f"{rows} rows of which {start:.0%} pass, {breaks:.0%} flip, {looks} looks: runs with a false result"
        figures.append(figure(of, float(np.mean([each for each, _ in ends])), at_most=KeepSettings().result_level))
        figures.append(figure(f"{of}, not corrected", float(np.mean([each for _, each in ends]))))
    return 0 if publish("keep", figures, "Costs and benefits of the level of keep-or-drop") else 1


if __name__ == "__main__":
    sys.exit(main())
