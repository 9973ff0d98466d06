"""P(content) from two deficits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nslora.tools.classifier.probability import chance_missing, p_content

SHARES, LIMITS = st.floats(0, 1), st.floats(0.03, 0.5)


def test_at_the_limit_the_chance_is_even() -> None:
    assert chance_missing(0.08, 0.08) == pytest.approx(0.5)


def test_if_both_are_missing_it_is_a_half_whatever_the_reward_pays_for_each() -> None:
    assert p_content(0.25, 0.95, 0.03, 0.08) == pytest.approx(0.5, abs=0.02)
    assert p_content(1.0, 0.3, 0.08, 0.08) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("content", "form", "low", "high"), [(1.0, 0.0, 0.9, 1.0), (0.0, 1.0, 0.0, 0.1)])
def test_if_one_is_missing_it_is_sure(content: float, form: float, low: float, high: float) -> None:
    assert low <= p_content(content, form, 0.08, 0.08) <= high


@given(SHARES, SHARES, SHARES, LIMITS, LIMITS)
def test_a_larger_content_deficit_never_lowers_it(
    one: float, other: float, form: float, content_limit: float, form_limit: float
) -> None:
    low, high = (p_content(each, form, content_limit, form_limit) for each in sorted([one, other]))
    assert 0.0 <= low <= high <= 1.0


@given(SHARES, SHARES, LIMITS)
def test_swapping_the_deficits_mirrors_it(content: float, form: float, limit: float) -> None:
    assert p_content(content, form, limit, limit) == pytest.approx(1 - p_content(form, content, limit, limit))
