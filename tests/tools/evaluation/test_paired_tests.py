"""Paired tests: exact values by hand or from counting, verdicts by table."""

import math
import random

import pytest
from pydantic import ValidationError

from nslora.tools.evaluation.acceptance import KeepSettings, keep_or_drop, paired_gain_test, smallest_detectable_gain
from nslora.tools.evaluation.paired_tests import REWARDS, bootstrap_interval, p_values_of_several, sign_flip_p_value


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1], 1 / 2),
        ([1, 1, 1, 1], 1 / 16),
        ([1, 1, 1, -1], 5 / 16),  # sums of four signs that reach 2: 4 + 1 of 16
        ([0, 0, 1, 1, 0], 1 / 4),  # ties are left out
        ([-1, -1], 1.0),
        ([0, 0], 1.0),
        ([0.5, 0.25], 1 / 4),
    ],
)
def test_the_p_value_is_the_share_of_sign_patterns_that_reach_the_sum(differences, expected):
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_monte_carlo_agrees_with_the_binomial_tail():
    # 14 wins of 20: P(X >= 14), X ~ B(20, 1/2) = 60460 / 2**20
    assert sign_flip_p_value([1.0] * 14 + [-1.0] * 6, samples=40_000) == pytest.approx(60460 / 2**20, abs=0.004)


def test_monte_carlo_is_the_same_every_time():
    values = [random.Random(0).gauss(0.1, 1) for _ in range(40)]
    assert sign_flip_p_value(values) == sign_flip_p_value(values)


def test_under_no_change_the_test_is_wrong_no_more_often_than_its_level():
    draw = random.Random(5)
    tables = [[draw.choice([-1.0, 0.0, 1.0]) for _ in range(12)] for _ in range(400)]
    assert sum(sign_flip_p_value(table) <= 0.10 for table in tables) / 400 <= 0.13  # 0.10 and two standard errors


@pytest.mark.parametrize("rows", [6, 40])
def test_one_candidate_among_several_that_are_alike_has_its_own_p_value(rows: int) -> None:
    gains = [1.0, 1.0, 1.0, 1.0, -1.0, 0.5] * (rows // 6)
    own = sign_flip_p_value(gains)
    assert p_values_of_several([gains]) == [pytest.approx(own, abs=0.01 if len(gains) > 16 else 1e-12)]
    assert p_values_of_several([gains, gains]) == pytest.approx([own, own], abs=0.01 if len(gains) > 16 else 1e-12)
    assert p_values_of_several([[0.0] * len(gains), gains])[0] == 1.0
    assert p_values_of_several([[0.0] * len(gains)]) == [1.0]


def test_each_look_at_another_candidate_makes_the_best_of_them_less_sure() -> None:
    draw = random.Random(0)
    winner = [1.0] * 5 + [0.0] * 25
    others = [[draw.choice((-1.0, 0.0, 1.0)) for _ in winner] for _ in range(5)]
    found = [p_values_of_several([winner, *others[:looks]])[0] for looks in range(6)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(1 / 32)
    assert found[-1] > 1.5 * found[0]


def test_of_several_candidates_that_change_nothing_one_seems_better_no_more_often_than_the_level() -> None:
    draw = random.Random(1)
    runs = [[[draw.choice((-1.0, 0.0, 1.0)) for _ in range(30)] for _ in range(6)] for _ in range(200)]
    corrected = sum(min(p_values_of_several(run, samples=500)) <= 0.05 for run in runs) / len(runs)
    assert corrected <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / len(runs))
    assert sum(min(sign_flip_p_value(gains, samples=500) for gains in run) <= 0.05 for run in runs) / len(runs) > 0.15


def test_four_rows_won_is_the_least_that_the_default_level_can_see():
    assert smallest_detectable_gain(30) == pytest.approx(4 / 30)
    old, new = [0.0] * 30, [1.0] * 4 + [0.0] * 26
    gain = paired_gain_test(old, new)
    assert gain.gain == pytest.approx(gain.smallest_detectable)
    assert gain.p_value <= 0.10
    assert (gain.wins, gain.losses, gain.ties) == (4, 0, 26)
    assert paired_gain_test(old, [1.0] * 3 + [0.0] * 27).p_value > 0.10


def test_the_interval_holds_the_mean_and_narrows_with_rows():
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 200
    low, high = bootstrap_interval(few, seed=1)
    assert low < 0.5 < high
    tight_low, tight_high = bootstrap_interval(many, seed=1)
    assert tight_high - tight_low < high - low


@pytest.mark.parametrize("rows", [5, 6, 12])
def test_an_interval_holds_the_true_rate_however_few_rows_there_are(rows: int) -> None:
    """Exact: over all outcomes, by their binomial probability."""
    intervals = [
        bootstrap_interval([1.0] * won + [0.0] * (rows - won), bounds=REWARDS, samples=2000) for won in range(rows + 1)
    ]
    for rate in (0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 0.95):
        covered = sum(
            math.comb(rows, won) * rate**won * (1 - rate) ** (rows - won)
            for won, (low, high) in enumerate(intervals)
            if low <= rate <= high
        )
        assert covered >= 0.92  # the percentile bootstrap alone: 0.10
    assert intervals[0][1] == pytest.approx(1 - 0.025 ** (1 / rows))  # the exact binomial bound
    assert intervals[-1][0] == pytest.approx(0.025 ** (1 / rows))


def test_a_gain_that_the_test_cannot_see_has_an_interval_over_zero() -> None:
    low, high = bootstrap_interval([1.0, 1.0, 1.0, 0.0, 0.0])
    assert sign_flip_p_value([1.0, 1.0, 1.0, 0.0, 0.0]) == 0.125
    assert low < 0 < high


KEEP = [
    ("reward up", [1] * 6 + [0] * 4, None, True, "Kept: reward"),
    ("tie", [0] * 10, None, False, "Dropped"),
    ("one row up is chance", [1] + [0] * 9, None, False, "no gain"),
    ("reward down", [-1] * 6 + [0] * 4, [1] * 10, False, "Dropped"),
    ("reward equal, potential up", [0] * 10, [1] * 6 + [0] * 4, True, "potential"),
    ("reward equal, potential equal", [0] * 10, [0] * 10, False, "Dropped"),
    ("reward a little up, potential up", [1] + [0] * 9, [1] * 6 + [0] * 4, True, "potential"),
    ("reward a little down, potential up", [-1] + [0] * 9, [1] * 10, False, "Dropped"),
]


@pytest.mark.parametrize(("case", "gains", "potential", "kept", "words"), KEEP, ids=[row[0] for row in KEEP])
def test_a_candidate_is_kept_on_reward_or_on_potential(case, gains, potential, kept, words):
    old = [0.5] * 10
    new = [0.5 + gain / 2 for gain in gains]
    repairable_rewards = ([0.0] * 10, [float(each) for each in potential]) if potential else (None, None)
    verdict = keep_or_drop(old, new, *repairable_rewards)
    assert verdict.kept is kept
    assert words in verdict.reason


def test_a_candidate_that_regresses_on_the_anchor_set_is_never_kept():
    verdict = keep_or_drop([0.0] * 9, [1.0] * 9, regression_old=[1.0, 1.0], regression_new=[1.0, 0.0])
    assert not verdict.kept
    assert "anchor" in verdict.reason
    lenient = KeepSettings(anchor_tolerance=0.5)
    assert keep_or_drop(
        [0.0] * 9, [1.0] * 9, regression_old=[1.0, 1.0], regression_new=[1.0, 0.0], settings=lenient
    ).kept


def test_rows_that_do_not_pair_are_named():
    with pytest.raises(ValueError, match="2 old and 1 new"):
        keep_or_drop([0.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="No rows"):
        paired_gain_test([], [])
    with pytest.raises(ValueError, match="Row 2"):
        paired_gain_test([0.0, float("nan")], [0.0, 1.0])


def test_a_level_out_of_range_is_refused():
    with pytest.raises(ValidationError):
        KeepSettings(level=0.6)
