"""Which update goes next: a table over saturation, demand and budget, and properties over any history."""

import dataclasses
import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nslora.tools.classifier.attribution import Need
from nslora.tools.errors import SettingsError
from nslora.tools.router.expected_gain import StrategySettings, expected_gains
from nslora.tools.router.inputs import RouterDecision, RouterInput
from nslora.tools.router.monitoring_signal import Update, closed, progress_of
from nslora.tools.router.strategies import strategy_named
from nslora.tools.schema import KINDS

BUILT_IN = [
    "neurosymbolic",
    "lora",
    "textgrad",
    "random",
    "textgrad -> lora -> textgrad",
    "textgrad once -> lora",
    "neurosymbolic-without-classifier",
    "neurosymbolic-with-signal",
]
WITH = "neurosymbolic-with-signal"
DROPPED = {kind: Update(kind, False, 0.0, 0.0) for kind in KINDS}
KEPT = {"lora": Update("lora", True, 0.2, 0.2, (2.0, 1.4), (1.0, 0.8)), "textgrad": Update("textgrad", True, 0.2, 0.2)}


def wanting(p_content, failures=20):
    content = 1.0 if p_content > 0.6 else 0.0
    form = 1.0 if p_content < 0.4 else 0.0
    return Need(failures, content, form, 1.0 - content - form, p_content, failures * 0.5)


def router_input(p_content=0.5, history=(), lora_tokens=100.0, textgrad_tokens=10.0, **changes):
    history = tuple(history)
    values = {
        "task": "a task's hash",
        "round": len(history),
        "rounds_left": 8,
        "failures": 20,
        "validation_reward": 0.4,
        "target": 0.95,
        "need": wanting(p_content),
        "progress": {kind: progress_of(kind, history) for kind in KINDS},
        "cost_tokens": {"lora": lora_tokens, "textgrad": textgrad_tokens},
        "remade_waiting": 0,
        "seed": 0,
        "history": history,
    }
    return RouterInput(**{**values, **changes})


def choose(name="neurosymbolic", **changes):
    return strategy_named(name).choose(router_input(**changes))


@pytest.mark.parametrize(("p_content", "action"), [(0.9, "lora"), (0.5, "textgrad"), (0.1, "textgrad")])
def test_the_first_update_goes_where_the_failures_point_and_to_the_cheaper_when_both(p_content, action):
    assert choose(p_content=p_content).action == action


@pytest.mark.parametrize("ratio", [1, 10, 100, 10_000])
def test_a_needed_kind_goes_first_however_expensive(ratio):
    assert choose(p_content=0.9, lora_tokens=float(ratio), textgrad_tokens=1.0).action == "lora"
    assert choose(p_content=0.1, lora_tokens=1.0, textgrad_tokens=float(ratio)).action == "textgrad"


@pytest.mark.parametrize(
    ("lora", "textgrad", "p_content", "rounds_left"),
    list(itertools.product([False, True], [False, True], [0.0, 0.1, 0.5, 0.9, 1.0], [0, 1, 8])),
)
def test_table_of_saturation_demand_and_budget(lora, textgrad, p_content, rounds_left):
    history = [DROPPED["lora"]] * (2 * lora) + [DROPPED["textgrad"]] * (2 * textgrad)
    decision = choose(p_content=p_content, history=history, rounds_left=rounds_left)
    if rounds_left == 0 or (lora and textgrad):
        expected = "finish"
    elif lora:
        expected = "textgrad"
    elif textgrad:
        # Weights learn no form from plain references: without content demand there is nothing for them.
        expected = "lora" if p_content > 0.05 else "finish"
    else:
        expected = "lora" if p_content >= 0.9 else "textgrad"
    assert decision.action == expected
    assert decision.reason.endswith(".")


def test_an_edit_that_was_dropped_but_left_remade_rows_leads_to_weights_even_if_all_failures_are_form():
    trained = Update("lora", True, 0.5, 0.5, (3.0, 0.1), (1.0, 0.1))
    dropped = Update("textgrad", False, 0.0, 0.0, new_rows=22)
    for name, history in ((WITH, [trained, dropped]), ("neurosymbolic", [trained, dropped, dropped])):
        decision = choose(name, p_content=0.0, history=history, remade_waiting=22)
        assert decision.action == "lora"
        assert "22 verified remade rows" in decision.reason


def test_after_a_kept_edit_that_mended_the_form_weights_are_next():
    assert choose(p_content=1.0, history=[KEPT["textgrad"]]).action == "lora"
    assert choose(p_content=0.97, history=[KEPT["textgrad"]], remade_waiting=18).action == "lora"


def test_one_dropped_edit_does_not_hand_a_matter_of_form_to_weights():
    assert choose(p_content=0.1, history=[DROPPED["textgrad"]]).action == "textgrad"


def test_the_signal_hands_a_mixed_demand_to_weights_after_one_dropped_edit_and_the_default_after_two():
    assert choose(WITH, p_content=0.5, history=[DROPPED["textgrad"]]).action == "lora"
    assert choose(p_content=0.5, history=[DROPPED["textgrad"]]).action == "textgrad"
    assert choose(p_content=0.5, history=[DROPPED["textgrad"]] * 2).action == "lora"


def test_a_tie_goes_to_the_cheaper():
    assert choose(p_content=0.51, lora_tokens=10.0, textgrad_tokens=10.0).action in KINDS
    assert choose(p_content=0.51, lora_tokens=10.0, textgrad_tokens=9.9).action == "textgrad"
    assert choose(p_content=0.49, lora_tokens=9.9, textgrad_tokens=10.0).action == "lora"


def test_the_reason_tells_demand_progress_and_choice():
    for name, history, words in (
        (WITH, [KEPT["lora"]], "LoRA still progresses (loss -30% last epoch)"),
        ("neurosymbolic", [], "LoRA is untried"),
        ("neurosymbolic", [KEPT["lora"]], "LoRA is open"),
        ("neurosymbolic", [KEPT["lora"], DROPPED["lora"]], "LoRA is open, 1 dropped since an update was kept"),
    ):
        decision = choose(name, p_content=0.9, history=history)
        assert decision.reason == f"20 of 20 failures need content; {words}; weights."
        assert decision.evidence["lora_progress"] == progress_of("lora", history).value  # used or not


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_strategy_ends_at_the_target_without_failures_and_without_rounds(name):
    strategy = strategy_named(name)
    assert "Target reached" in strategy.choose(router_input(validation_reward=0.95)).reason
    assert "No failure is left" in strategy.choose(router_input(failures=0, need=None)).reason
    assert "Round limit of 0" in strategy.choose(router_input(rounds_left=0)).reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_kind_runs_until_it_is_saturated(kind):
    assert choose(kind, history=[DROPPED[kind]]).action == kind
    assert choose(kind, history=[DROPPED[kind]] * 2).action == "finish"


def test_a_fixed_order_moves_on_when_a_step_is_saturated_and_ends_after_the_last():
    name = "textgrad -> lora -> textgrad"
    textgrad, lora = [DROPPED["textgrad"]] * 2, [DROPPED["lora"]] * 2
    assert choose(name).action == "textgrad"
    assert choose(name, history=[KEPT["textgrad"], DROPPED["textgrad"]]).action == "textgrad"
    assert choose(name, history=textgrad).action == "lora"
    assert choose(name, history=[*textgrad, *lora]).action == "textgrad"
    assert choose(name, history=[*textgrad, *lora, *textgrad]).action == "finish"


def test_a_step_of_one_update_is_over_after_it_kept_or_dropped():
    name = "textgrad once -> lora"
    assert strategy_named("textgrad   once->lora").name == name
    assert choose(name).action == "textgrad"
    for first in (KEPT["textgrad"], DROPPED["textgrad"]):
        assert choose(name, history=[first]).action == "lora"
        assert choose(name, history=[first, KEPT["lora"], DROPPED["lora"]]).action == "lora"
        assert choose(name, history=[first, DROPPED["lora"], DROPPED["lora"]]).action == "finish"
    ended = choose("lora -> textgrad once", history=[*[DROPPED["lora"]] * 2, KEPT["textgrad"]])
    assert ended.reason == "The order lora -> textgrad once is done: its last step was one update."


def test_chance_repeats_itself_by_task_seed_and_round_and_never_picks_a_saturated_kind():
    picks = [choose("random", seed=seed).action for seed in range(40)]
    assert picks == [choose("random", seed=seed).action for seed in range(40)]
    assert set(picks) == set(KINDS)
    assert {choose("random", task=f"task {number}").action for number in range(40)} == set(KINDS)
    assert all(choose("random", seed=s, history=[DROPPED["lora"]] * 2).action == "textgrad" for s in range(10))


def test_without_the_classifier_a_kind_stays_until_saturated():
    name = "neurosymbolic-without-classifier"
    assert choose(name, p_content=1.0).action == "textgrad"
    assert choose(name, p_content=0.0, history=[KEPT["lora"]]).action == "lora"
    assert choose(name, p_content=1.0, history=[DROPPED["lora"]] * 2).action == "textgrad"


def test_without_the_signal_two_drops_close_a_kind_until_an_update_is_kept():
    kept, lora, edit = KEPT["textgrad"], DROPPED["lora"], DROPPED["textgrad"]
    for name in ("neurosymbolic", "neurosymbolic-without-signal"):
        assert choose(name, p_content=0.9, history=[kept, lora]).action == "lora"
        assert choose(name, p_content=0.9, history=[kept, lora, lora]).action == "textgrad"
        assert choose(name, p_content=0.9, history=[kept, lora, lora, kept]).action == "lora"
        end = choose(name, p_content=0.9, history=[kept, lora, edit, lora, edit])
        assert end.action == "finish"
        assert end.reason.count("(routing.drops_without_signal)") == 2


def test_without_the_signal_a_kind_is_closed_that_cannot_go():
    history = [KEPT["lora"], DROPPED["lora"], DROPPED["lora"]]
    found = router_input(p_content=0.9, history=history)
    no_edit = dataclasses.replace(
        found, progress={**found.progress, "textgrad": closed(found.progress["textgrad"], "no_material")}
    )
    assert strategy_named("neurosymbolic").choose(found).action == "textgrad"
    end = strategy_named("neurosymbolic").choose(no_edit)
    assert end.action == "finish"
    assert "TextGrad has no failure on train to learn from" in end.reason


@pytest.mark.parametrize("name", ["neurosymbolic", WITH])
def test_weights_are_tried_once_from_the_start_until_something_is_kept(name):
    lora, edit = DROPPED["lora"], DROPPED["textgrad"]
    rows = dataclasses.replace(edit, new_rows=20)
    assert choose(name, p_content=1.0, history=[lora]).action == "textgrad"
    assert "tried from the start in vain" in choose(name, p_content=1.0, history=[lora]).reason
    # The rows of a dropped edit do not open weights a second time, and a job that failed was not measured.
    assert choose(name, p_content=1.0, history=[lora, rows], remade_waiting=20).action == "textgrad"
    assert "in vain" not in choose(name, p_content=1.0, history=[dataclasses.replace(lora, failed=True)]).reason
    assert choose(name, p_content=1.0, history=[rows], remade_waiting=20).action == "lora"
    assert choose(name, p_content=1.0, history=[lora, KEPT["textgrad"]]).action == "lora"
    end = choose(name, p_content=1.0, history=[lora, edit, edit])
    assert end.action == "finish"
    assert "routing.tries_from_start" in end.reason
    settings = StrategySettings(tries_from_start=None)
    again = strategy_named(name, settings=settings).choose(router_input(p_content=1.0, history=[lora]))
    assert again.action == "lora"


def own_choice(router_input):
    return "lora" if router_input.round % 2 else RouterDecision("textgrad", "Mine.", {})


def wrong_choice(router_input):
    return "prompt"


def raising_choice(router_input):
    raise KeyError("demand")


def test_a_users_own_function_decides(monkeypatch):
    import types

    module = types.ModuleType("my_strategies")
    module.own, module.wrong, module.raising, module.number = own_choice, wrong_choice, raising_choice, 3
    module.object = lambda router_input: RouterDecision("lora", "Mine.", {"x": object()})
    monkeypatch.setitem(sys.modules, "my_strategies", module)
    assert choose("my_strategies:own").reason == "Mine."
    assert choose("my_strategies:own", round=1).action == "lora"
    with pytest.raises(SettingsError, match="'prompt'"):
        choose("my_strategies:wrong")
    with pytest.raises(SettingsError, match="no number or text"):
        choose("my_strategies:object")
    with pytest.raises(SettingsError, match="KeyError"):
        choose("my_strategies:raising")
    for spec in ("my_strategies:number", "my_strategies:nothing", "no_such_module_here:f"):
        with pytest.raises(SettingsError):
            strategy_named(spec)


def test_a_users_module_may_lie_where_the_run_is_started(monkeypatch, tmp_path):
    (tmp_path / "strategy_of_mine.py").write_text("def choose(situation):\n    return 'textgrad'\n")
    (tmp_path / "strategy_broken.py").write_text("def choose(situation:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    assert choose("strategy_of_mine:choose", p_content=1.0).action == "textgrad"
    with pytest.raises(SettingsError, match="SyntaxError"):
        strategy_named("strategy_broken:choose")


@pytest.mark.parametrize("name", ["lroa", "", "lora -> prompt", "->", "textgrad twice -> lora", "once -> lora"])
def test_an_unknown_strategy_names_those_that_are_known(name):
    with pytest.raises(SettingsError, match="neurosymbolic, lora, textgrad, random"):
        strategy_named(name)


UPDATES = st.builds(
    Update,
    kind=st.sampled_from(KINDS),
    kept=st.booleans(),
    gain=st.floats(-1, 1),
    repairable_gain=st.floats(-1, 1),
    epoch_losses_nats=st.lists(st.floats(0, 20), max_size=3).map(tuple),
    grad_norms=st.lists(st.floats(0, 100), max_size=3).map(tuple),
    new_rows=st.integers(0, 5),
    failed=st.booleans(),
)
SHARES = st.floats(0, 1)


@given(st.sampled_from(BUILT_IN), st.lists(UPDATES, max_size=8), SHARES, st.integers(0, 3), st.integers(0, 4))
@settings(deadline=None)
def test_no_history_leaves_the_loop_without_a_decision(name, history, p_content, rounds_left, waiting):
    decision = choose(name, p_content=p_content, history=history, rounds_left=rounds_left, remade_waiting=waiting)
    assert decision.action in (*KINDS, "finish")
    assert decision.reason
    if decision.action in KINDS and name not in (
        "textgrad -> lora -> textgrad",
        "textgrad once -> lora",
        "neurosymbolic",
    ):
        assert not progress_of(decision.action, history).saturated


@given(st.sampled_from(BUILT_IN), SHARES)
@settings(deadline=None)
def test_where_nothing_helps_every_strategy_ends_within_two_updates_of_each_step(name, p_content):
    history = []
    while (decision := choose(name, p_content=p_content, history=history, rounds_left=99)).action != "finish":
        history.append(DROPPED[decision.action])
        assert len(history) <= 6
    assert history


@given(SHARES, SHARES, st.lists(UPDATES, max_size=6), st.floats(0.1, 1e4), st.floats(0.1, 1e4), st.integers(0, 3))
@settings(deadline=None)
def test_more_content_failures_never_lower_the_weight_of_lora(one, other, history, lora_cost, edit_cost, waiting):
    low, high = sorted([one, other])
    costs = {"lora_tokens": lora_cost, "textgrad_tokens": edit_cost}
    less = router_input(p_content=low, history=history, remade_waiting=waiting, **costs)
    more = dataclasses.replace(less, need=wanting(high))
    before, after = expected_gains(less), expected_gains(more)
    assert after["lora"] >= before["lora"]
    assert after["textgrad"] <= before["textgrad"]
    strategy = strategy_named("neurosymbolic")
    if strategy.choose(less).action == "lora":
        assert strategy.choose(more).action == "lora"


def test_settings_are_checked():
    with pytest.raises(ValueError):
        StrategySettings(cost_floor=0.0)
