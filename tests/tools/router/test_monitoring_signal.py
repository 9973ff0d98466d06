"""The unified monitoring signal, over every combination of outcomes and by property."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nslora.tools.router.monitoring_signal import SignalSettings, Update, progress_of, relative_loss_drop
from nslora.tools.schema import KINDS


def lora(kept=True, gain=0.2, losses=(2.0, 1.0), norms=(1.0, 1.0), **more):
    return Update("lora", kept, gain, 0.0, tuple(losses), tuple(norms), **more)


def edit(kept=True, gain=0.2, **more):
    return Update("textgrad", kept, gain, 0.0, **more)


USELESS = {"lora": lora(kept=False, gain=0.0), "textgrad": edit(kept=False, gain=0.0)}
USEFUL = {"lora": lora(), "textgrad": edit()}
UPDATES = st.builds(
    Update,
    kind=st.sampled_from(KINDS),
    kept=st.booleans(),
    gain=st.floats(-1, 1),
    repairable_gain=st.floats(-1, 1),
    epoch_losses_nats=st.lists(st.floats(0, 20) | st.just(float("nan")), max_size=4).map(tuple),
    grad_norms=st.lists(st.floats(0, 100) | st.just(float("inf")), max_size=4).map(tuple),
    new_rows=st.integers(0, 5),
    failed=st.booleans(),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_never_tried_is_open_at_one(kind):
    state = progress_of(kind, [])
    assert (state.value, state.saturated) == (1.0, False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outcomes", list(itertools.product([True, False], repeat=4)))
def test_a_kind_is_saturated_exactly_after_two_useless_updates_in_a_row(kind, outcomes):
    history = [USEFUL[kind] if useful else USELESS[kind] for useful in outcomes]
    # Hysteresis lets a saturated kind that was run all the same open again only on clear progress, which USEFUL is.
    assert progress_of(kind, history).saturated == (not any(outcomes[-2:]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saturated_kind_opens_when_the_other_had_an_update_kept_and_not_when_it_was_dropped(kind):
    other = "textgrad" if kind == "lora" else "lora"
    history = [USELESS[kind]] * 2
    assert progress_of(kind, [*history, USELESS[other]]).saturated
    reopened = progress_of(kind, [*history, USEFUL[other]])
    assert not reopened.saturated
    assert reopened.value >= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_after_opening_again_it_takes_two_more_useless_updates(kind):
    other = "textgrad" if kind == "lora" else "lora"
    history = [USELESS[kind], USELESS[kind], USEFUL[other], USELESS[kind]]
    assert not progress_of(kind, history).saturated
    assert progress_of(kind, [*history, USELESS[kind]]).saturated


@pytest.mark.parametrize(
    ("kind", "gain", "saturated"),
    [
        ("lora", 0.006, True),
        ("lora", 0.009, True),
        ("lora", 0.011, False),
        ("textgrad", 0.009, True),
        ("textgrad", 0.011, False),
    ],
)
def test_a_saturated_kind_that_is_run_all_the_same_opens_only_above_twice_its_threshold(kind, gain, saturated):
    # Progress is gain / 0.05; the threshold is 0.10, which is a gain of 0.005, and twice that 0.010.
    again = Update(kind, True, gain, 0.0)
    assert progress_of(kind, [USELESS[kind], USELESS[kind], again]).saturated == saturated
    assert not progress_of(kind, [again]).saturated


@given(st.sampled_from(KINDS), st.lists(st.floats(0.0, 0.0099), max_size=8))
def test_noise_around_the_threshold_never_flips_a_saturated_kind(kind, gains):
    history = [USELESS[kind]] * 2 + [Update(kind, True, gain, 0.0) for gain in gains]
    assert all(progress_of(kind, history[:end]).saturated for end in range(2, len(history) + 1))


def test_verified_rows_of_a_dropped_edit_open_lora_again():
    history = [USELESS["lora"], USELESS["lora"], edit(kept=False, gain=0.0, new_rows=7)]
    assert not progress_of("lora", history).saturated


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_of_a_dropped_edit_give_lora_one_try_and_a_kept_edit_all_its_patience(jobs):
    history = [USELESS["lora"]] * jobs
    after_a_drop = [*history, edit(kept=False, gain=0.0, new_rows=7), USELESS["lora"]]
    after_a_keep = [*history, edit(new_rows=7), USELESS["lora"]]
    assert progress_of("lora", after_a_drop).saturated
    assert not progress_of("lora", after_a_keep).saturated


def test_rows_of_dropped_edits_open_lora_once_until_something_is_kept():
    dropped = edit(kept=False, gain=0.0, new_rows=7)
    in_vain = [USELESS["lora"], USELESS["lora"], dropped, USELESS["lora"], dropped]
    assert progress_of("lora", in_vain).saturated
    assert not progress_of("lora", [*in_vain, USEFUL["textgrad"]]).saturated
    assert not progress_of("lora", [*in_vain, USEFUL["textgrad"], *[USELESS["lora"]] * 2, dropped]).saturated
    unasked = [USEFUL["textgrad"], dropped, USELESS["lora"], USELESS["lora"]]  # it was open before those rows came
    assert progress_of("lora", unasked).saturated
    assert not progress_of("lora", [*unasked, dropped]).saturated
    helped = [USELESS["lora"], USELESS["lora"], dropped, USEFUL["lora"], *[USELESS["lora"]] * 2]
    assert progress_of("lora", helped).saturated
    assert not progress_of("lora", [*helped, dropped]).saturated


def test_a_failed_edit_moves_no_ground():
    history = [USELESS["lora"], USELESS["lora"], edit(kept=True, new_rows=3, failed=True)]
    assert progress_of("lora", history).saturated


def test_a_dropped_burst_counts_little_however_far_its_loss_fell():
    assert progress_of("lora", [lora(kept=False, gain=0.0, losses=(8.0, 0.1))]).value == pytest.approx(0.05)


def test_a_kept_burst_takes_the_larger_of_reward_and_trainer_term():
    # L = (1 - 0.85) / 0.30 = 0.5, G = 0.5 / 2.0 = 0.25: sqrt(0.125) = 0.354; R = 0.01 / 0.05 = 0.2
    state = progress_of("lora", [lora(gain=0.01, losses=(1.0, 0.85), norms=(2.0, 0.5))])
    assert state.value == pytest.approx(0.125**0.5)
    assert state.evidence["relative_loss_drop"] == pytest.approx(0.15)


def test_the_gradient_is_measured_against_the_largest_of_any_burst():
    flat = lora(gain=0.0, losses=(1.0, 0.7), norms=(1.0, 1.0))
    assert progress_of("lora", [lora(norms=(4.0, 4.0)), flat]).evidence["gradient_share"] == pytest.approx(0.25)


def test_a_potential_gain_that_kept_an_edit_is_progress():
    assert progress_of("textgrad", [Update("textgrad", True, 0.0, 0.3)]).value == 1.0


def test_edits_are_averaged_over_the_window_and_a_drop_counts_zero():
    assert progress_of("textgrad", [edit(), edit(kept=False)]).value == pytest.approx(0.5)


def test_a_failed_burst_is_no_progress():
    assert progress_of("lora", [lora(failed=True)]).value == 0.0


def test_a_burst_of_one_epoch_is_judged_by_its_reward_alone():
    assert relative_loss_drop([1.0]) is None
    assert progress_of("lora", [lora(gain=0.01, losses=(1.0,))]).value == pytest.approx(0.2)


def test_settings_that_would_never_saturate_are_refused():
    with pytest.raises(ValidationError, match="never saturate"):
        SignalSettings(dropped_weight=0.2, lora_threshold=0.1)
    with pytest.raises(ValidationError):
        SignalSettings(patiense=3)


@given(st.lists(UPDATES, max_size=12), st.sampled_from(KINDS))
def test_the_value_stays_in_range_whatever_the_history(history, kind):
    state = progress_of(kind, history)
    assert 0.0 <= state.value <= 1.0


@given(st.lists(UPDATES, max_size=10), st.sampled_from(KINDS))
def test_two_useless_updates_saturate_after_any_history(history, kind):
    assert progress_of(kind, [*history, USELESS[kind], USELESS[kind]]).saturated
