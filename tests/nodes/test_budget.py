"""Budgets: reserved before each step, never overshot, kept over processes; a plan before anything is spent."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import ObedientPolicy
from scripted_runs import ONCE, begun
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.run import Run
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.cost import Steps
from nslora.tools.errors import DivergedError
from nslora.tools.files import read_jsonl
from nslora.tools.inference.flops import TERA, FlopRates
from nslora.tools.policy import OnProgress, TrainingJob, TrainingResult, TrainingRow
from nslora.tools.prompt import Prompt
from nslora.tools.router.inputs import RouterDecision
from nslora.tools.router.monitoring_signal import Progress
from nslora.tools.schema import Example
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.testing.scripted_chat import improved
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.training_cache import TrainingCache
from nslora.tools.workspace.budget import (
    Expected,
    Spent,
    affordable_epochs,
    blocked,
    expected_seconds,
    plan_of,
    spent_of,
)
from nslora.tools.workspace.settings import RunSettings
from nslora.tools.workspace.task_clock import CLOCK_FILE, TaskClock
from nslora.tools.workspace.upper_bounds import planned_tokens

textgrad_node = import_module("nslora.nodes.textgrad_edit")  # the package names its function

FREE = Expected(0.0, 0.0, {"lora": 0.0, "textgrad": 0.0})


def settings(**values: Any) -> RunSettings:
    return RunSettings(**values)


def record(**values: Any) -> dict[str, Any]:
    return {"action": "lora", "wall_s": 10.0, "trained_tokens": 500, "flop": 2e12, "editor": {}, **values}


def test_what_was_spent_is_summed_over_the_rounds() -> None:
    editor = {"calls": 5, "input_tokens": 80, "output_tokens": 20, "cost": 0.5}
    assert spent_of([record(), record(action="textgrad", trained_tokens=0, editor=editor)], 30.0, 1e12) == Spent(
        30.0, 500, 5, 100, 0.5, 5.0
    )


@pytest.mark.parametrize(
    ("values", "spent", "kinds"),
    [
        ({"max_train_tokens": 1000}, Spent(train_tokens=901), {"lora"}),
        ({"max_train_tokens": 1000}, Spent(train_tokens=900), set()),
        ({"editing": {"max_calls": 9}}, Spent(editor_calls=5), {"textgrad"}),
        ({"editing": {"max_calls": 10}}, Spent(editor_calls=5), set()),
        ({"editing": {"max_tokens": 10}}, Spent(editor_tokens=10), {"textgrad"}),
        ({"max_seconds": 100.0}, Spent(seconds=100.1), {"lora", "textgrad"}),
        ({}, Spent(1e9, 10**9, 10**9, 10**9, 1e9), set()),
    ],
)
def test_a_kind_is_closed_where_its_next_step_does_not_fit(values: Any, spent: Spent, kinds: set[str]) -> None:
    assert set(blocked(settings(**values), spent, FREE, tokens_per_epoch=100)) == kinds


def test_the_time_of_the_evaluation_and_the_test_is_reserved_with_an_update() -> None:
    task: Any = SimpleNamespace(train=range(8), validation=range(2), test=range(5))
    expected = expected_seconds([record(wall_s=20.0)], 10.0, task, settings(lora={"epochs": 4}))
    assert expected.finish_s == pytest.approx(1.25 * 10)  # two candidates, five questions, a second each
    assert expected.update_s["lora"] == pytest.approx(25)  # measured
    assert expected.update_s["textgrad"] == pytest.approx(20)  # guessed: each row answered twice
    limit = settings(max_seconds=60.0)
    assert set(blocked(limit, Spent(seconds=12.0), expected, 0)) == {"lora"}
    assert set(blocked(limit, Spent(seconds=20.0), expected, 0)) == {"lora", "textgrad"}


def test_a_burst_gets_as_many_epochs_as_fit() -> None:
    limited = settings(max_train_tokens=1000)
    assert affordable_epochs(limited, Spent(train_tokens=400), 250) == 2
    assert affordable_epochs(limited, Spent(train_tokens=900), 250) == 0
    assert affordable_epochs(settings(), Spent(), 250) == 8


def test_train_tokens_are_never_overshot(begin: Callable[..., Run]) -> None:
    free = begin("free", strategy="lora", max_rounds=1)
    whole = free.adapt().report["cost"]["trained_tokens"]
    half = begin("half", strategy="lora", max_rounds=2, max_train_tokens=round(0.75 * whole)).adapt().report
    assert 0 < half["cost"]["trained_tokens"] <= 0.75 * whole
    assert half["stop"].startswith("Budget: ")


def test_editor_calls_are_never_overshot(begin: Callable[..., Run]) -> None:
    report = begin(strategy="textgrad", max_rounds=3, editing={"max_calls": 7, "failures": 4}).adapt().report
    assert report["cost"]["editor_calls"] <= 7
    assert [each["action"] for each in report["rounds"]] == ["textgrad"]
    assert "editor calls are spent" in report["stop"]


@pytest.mark.parametrize(
    ("strategy", "saturated", "action"),
    [("neurosymbolic", False, "lora"), ("neurosymbolic", True, "finish"), ("textgrad", False, "finish")],
)
def test_the_other_kind_takes_over_where_the_strategy_is_free_and_that_kind_open(
    strategy: str, saturated: bool, action: str
) -> None:
    limited = settings(strategy=strategy, editing={"max_calls": 4})
    task = SimpleNamespace(train=[1], validation=[1], test=[1], reward=SimpleNamespace(judges=()))
    workspace: Any = SimpleNamespace(settings=limited, task=task)
    state: Any = {"rounds": [], "wall_s": 1.0, "start_measured": None, "kept_measured": None, "measured": None}
    router_input: Any = SimpleNamespace(progress={"lora": Progress("lora", 1.0, saturated, {})})
    choice = Budget(state, workspace).allow(RouterDecision("textgrad", "Form is missing.", {}), router_input)
    assert choice.action == action
    assert choice.reason.startswith("Budget: 0 of 4 editor calls are spent, and an edit takes 5")


def test_a_run_whose_time_is_up_ends_with_what_it_has(begin: Callable[..., Run]) -> None:
    report = begin(max_seconds=0.001).adapt().report
    assert report["rounds"] == []
    assert "seconds are spent" in report["stop"]


@pytest.mark.parametrize("late", ["an editor call", "the remade replies", "the evaluation"])
def test_a_step_that_time_does_not_allow_is_broken_off_and_recorded(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    limits = iter({"an editor call": [0.0], "the remade replies": [None, None, 0.0], "the evaluation": []}[late])
    if late == "the evaluation":
        monkeypatch.setattr(Budget, "deadline", lambda _, to_be_evaluated=True: None if to_be_evaluated else 0.0)
        monkeypatch.setattr(Budget, "measuring_flop", lambda *_: 12 * TERA)
    else:
        made = textgrad_node.progress
        monkeypatch.setattr(Budget, "deadline", lambda *_, **__: next(limits))
        monkeypatch.setattr(
            textgrad_node, "progress", lambda workspace, what, until=None: made(workspace, what, next(limits))
        )
    run = begin(
        strategy="textgrad",
        max_rounds=1,
        seed=5,
        reuse_replies=False,
        max_seconds=1e6,
        device={"threads": 1, "device": "cpu", "batch_size": 1},
    )
    (record,) = run.adapt().report["rounds"]
    assert "max_seconds leave no" in record["error"]
    assert record["reward_after"] is None
    assert not record["kept"]
    assert (record["editor"]["calls"] > 0) is (late != "an editor call")
    if late == "the evaluation":  # one of twelve replies was there
        assert 1.0 < record["flop"] / TERA < 1.1


def test_seconds_of_a_node_that_was_stopped_count_when_it_goes_on(tmp_path: Path) -> None:
    stopped = TaskClock(tmp_path, "task")
    stopped.before_s = 100.0
    stopped.save()
    assert TaskClock(tmp_path, "task").seconds >= 100
    assert TaskClock(tmp_path, "another").seconds < 50
    (tmp_path / CLOCK_FILE).write_text('{"task": "ta')
    assert TaskClock(tmp_path, "task").seconds < 50


def test_a_plan_names_what_a_run_would_do_and_what_it_could_not_see(keepers: Task) -> None:
    plan = plan_of(keepers, settings(max_rounds=2, max_train_tokens=10, editing={"max_calls": 3}))
    lines = dict(plan.lines)
    assert lines["task"].startswith("keepers: 6 train")
    assert lines["training"].startswith("0 to 10 tokens")
    # Five rows won by half a point each are the least with which 6 rows give a result, at level 0.05.
    assert plan.warnings[0].startswith("6 validation rows cannot tell a gain below 0.42 from noise (wanted: 0.1)")
    assert len(plan.warnings) == 3


def test_with_a_single_check_a_row_is_won_whole(keepers: Task) -> None:
    splits = {
        split: [{"question": row.question, "reference": row.reference} for row in found]
        for split, found in (("train", keepers.train), ("validation", keepers.validation), ("test", keepers.test))
    }
    plan = plan_of(task_from_rows(**splits, reward="exact_match", max_new_tokens=8), settings())
    assert plan.warnings[0].startswith("6 validation rows cannot tell a gain below 0.83 from noise")


def test_rows_that_ask_the_same_are_told_before_they_count_as_several(keepers: Task) -> None:
    rows = [{"question": row.question, "reference": row.reference} for row in keepers.train]
    twice = {
        "validation": [{**rows[0], "question": "Who?"}, {**rows[0], "question": "who"}],
        "test": [{**rows[0], "question": "Where?"}],
    }
    warnings = plan_of(task_from_rows(train=rows, **twice, reward="exact_match"), settings()).warnings
    assert warnings[0].startswith("2 validation rows cannot tell any gain from noise (wanted: 0.1): add")
    assert any(each.startswith("The 2 rows of validation ask 1 different questions") for each in warnings)
    assert not any("rows of test" in each for each in warnings)


def test_what_a_budget_cannot_show_is_said_before_the_run(begin: Callable[..., Run]) -> None:
    said: list[str] = []
    begin(notify=said.append)
    assert any("6 validation rows cannot tell a gain below" in each for each in said)


def test_a_dry_run_starts_nothing(keepers: Task, tmp_path: Any) -> None:
    shell = CliRunner(env={"COLUMNS": "160"})
    shown = shell.invoke(app, ["run", keepers.source, "--dry-run", "--folder", str(tmp_path / "never")])
    assert "Nothing was started." in shown.output
    assert "uncertain by a factor of 3" in shown.output
    assert not (tmp_path / "never").exists()


def test_a_plan_counts_every_call_that_an_edit_may_take(keepers: Task) -> None:
    def calls(**editing: int) -> str:
        settings = RunSettings(model="m", editor="rules", max_rounds=2, editing=editing)  # type: ignore[arg-type]
        return dict(plan_of(keepers, settings).lines)["editor"]

    assert "0 to 48 calls" in calls(failures=3, candidates=3, retries=3)
    assert "0 to 0 calls" in calls(max_calls=0)


def test_a_burst_that_diverged_is_charged_alike_when_its_record_is_met_again(tmp_path: Path) -> None:
    log = TrainingCache(tmp_path / "bursts.jsonl", AdapterStore(tmp_path / "adapters"))
    job = TrainingJob((TrainingRow([{"role": "user", "content": "a"}], "b", "1", "reference"),), 2, seed=0)
    charged = []

    def diverges(_: TrainingJob, on_progress: OnProgress) -> TrainingResult:
        on_progress(3, 10)
        raise DivergedError("The loss was nan.")

    for _ in range(2):
        steps = Steps(lambda done, total, values=None: None)
        with pytest.raises(DivergedError):
            log.train_once(diverges, job, "request", steps)
        charged.append(steps.share)
    assert charged == [0.3, 0.3]
    assert len(read_jsonl(log.path)) == 1


@pytest.mark.parametrize(("max_steps", "tokens"), [(None, 400), (1, 40), (100, 400)])
def test_steps_that_end_a_burst_early_end_its_charge_too(max_steps: int | None, tokens: int) -> None:
    workspace: Any = SimpleNamespace(
        settings=settings(lora={"batch_size": 4, "max_steps": max_steps}),
        token_counts=lambda dialogues: [10] * len(dialogues),
    )
    row = TrainingRow([{"role": "user", "content": "a"}], "b", "1", "reference")
    assert planned_tokens(TrainingJob((row,) * 20, 2, seed=0), workspace) == tokens


@pytest.mark.parametrize(("max_tflop", "fits"), [(None, True), (200.0, True), (100.0, False)])
def test_candidates_are_screened_only_where_the_budget_holds_it(
    monkeypatch: pytest.MonkeyPatch, max_tflop: float | None, fits: bool
) -> None:
    monkeypatch.setattr(Budget, "evaluation_flop", lambda *_: 50e12)
    workspace: Any = SimpleNamespace(
        settings=settings(max_tflop=max_tflop),
        flop_rates=FlopRates(1e12, 3e12),
        token_counts=lambda dialogues: [2] * len(dialogues),
        task=SimpleNamespace(max_new_tokens=10, agent=None),
    )
    state: Any = {"rounds": [], "wall_s": 0.0, "start_measured": {"flop": 1e12}}
    rows = [Example("1", "Who?", "Ada", {})] * 2
    assert Budget(state, workspace).holds_screening([Prompt(), Prompt("Be brief.")], rows, 10e12) is fits


def test_rows_that_a_budget_lets_be_answered_anew_come_from_all_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(Example(f"{kind}-{i}", f"Question {i}?", kind, {}) for kind in ("one", "two") for i in range(20))
    workspace: Any = SimpleNamespace(
        settings=SimpleNamespace(remade_per_row=1, remade_rows=None, max_tflop=20e-12, seed=0),
        flop_rates=SimpleNamespace(forward=1.0),
        task=SimpleNamespace(train=rows, max_new_tokens=1, agent=None),
        token_counts=lambda dialogues: [1] * len(dialogues),
    )
    monkeypatch.setattr(Budget, "spent", Spent())
    monkeypatch.setattr(Budget, "evaluation_flop", lambda *_: 0.0)
    monkeypatch.setattr("nslora.tools.workspace.upper_bounds.END_TOKENS", 0)
    state: Any = {"round": 0, "kept": {"adapter": None}}
    found = Budget(state, workspace).affordable_remakes(Prompt(), 0.0)
    assert len(found) == 10
    assert {row.reference for row in found} == {"one", "two"}
    assert list(found) == [row for row in rows if row in found]  # in the file's order
    assert found == Budget(state, workspace).affordable_remakes(Prompt(), 0.0)
    workspace.settings.max_tflop = None
    assert Budget(state, workspace).affordable_remakes(Prompt(), 0.0) == rows
    workspace.settings.remade_rows = 12
    drawn = Budget(state, workspace).affordable_remakes(Prompt(), 0.0)
    assert len(drawn) == 12
    assert all(row in drawn for row in found)
    assert {row.id for row in Budget(state, workspace).remade_sample()} == {row.id for row in drawn}


class Counting(ObedientPolicy):
    """A policy that says what a token costs."""

    def describe(self) -> dict[str, Any]:
        return {"model": self.name, "forward_flop_per_token": 1e9, "training_flop_per_token": 3e9}


@pytest.mark.parametrize("cap_tflop", [2.6, 3.0, 4.0, 6.0, 20.0, 40.0])
def test_compute_is_not_overspent_where_the_policy_edits_its_own_prompt(
    tmp_path: Path, task: Task, cap_tflop: float
) -> None:
    run = begun(tmp_path, task, "policy", model=Counting(edit=improved(ONCE)), max_rounds=2, max_tflop=cap_tflop)
    report = run.adapt().report
    assert any(each["candidate"] for each in report["rounds"]) == (cap_tflop >= 6)  # some are within it
    assert report["cost"]["tflop"] <= cap_tflop
