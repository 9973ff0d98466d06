"""The statistics behind the strategy tables, on records made up here; expected numbers are worked out by hand."""

from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_strategies
import numpy as np
import pytest
from form import README, in_readme
from langgraph.runtime import RunControl
from signal_tables import WITH, WITHOUT, signal_lines
from strategy_cells import NOTHING, RECORDS, ROUTER, STRATEGIES, Cell, cells_of, groups_of, record_of
from strategy_scores import (
    Scores,
    best_at,
    could_fall,
    delivered,
    gain_over_budgets,
    left_alone,
    losses,
    made_worse,
    mean_of_tasks,
    near_final,
    over_budgets,
    over_tasks,
    reward_at,
    without_further_tries,
)
from strategy_tables import (
    draw,
    figures,
    loss_table,
    nothing_to_gain,
    readme_lines,
    summary_table,
    task_tables,
    waiting_line,
    waiting_words,
)
from strategy_tasks import KNOWN, SPLITS, bench_tasks

from nslora.graph.runs.run import Run
from nslora.graph.sweep.jobs import Event, Job
from nslora.tools.files import read_jsonl


def record(
    task: str,
    strategy: str,
    seed: int,
    passed: str,
    *,
    base: str = "0000",
    changed: bool = True,
    curve: Any = ((1.0, 0.0), (3.0, 0.5), (9.0, 1.0)),
    actions: str = "lora",
    dropped: Collection[int] = (),
) -> dict[str, Any]:
    """dropped: rounds, from 1. actions: of the rounds; the last one repeats."""
    names = actions.split()
    rounds = [
        {"action": names[min(i, len(names) - 1)], "kept": i + 1 not in dropped, "reward": reward, "error": None}
        for i, (_, reward) in enumerate(curve[1:])
    ]
    return {
        "task": task,
        "strategy": strategy,
        "seed": seed,
        "planted": "content",
        "cap_tflop": 60.0,
        "result": {"passed": passed, "rewards": [float(digit) for digit in passed], "checks": {}},
        "base": {"passed": base, "rewards": [0.0] * len(base), "checks": {}},
        "changed": changed,
        "curve": [list(point) for point in curve],
        "stop": "enough",
        "rounds": rounds,
        "cost": {"tflop": 9.0, "editor_tokens": 0.0},
        "wall_s": 2.0,
        "processor": "a core",
        "date": "2026-11-25",
        "commit": "c0ffee",
    }


def matrix() -> list[dict[str, Any]]:
    """Two tasks, two seeds: the router passes 3 of 4 questions, `lora` 4 of 4 on one task and 1 of 4 on the other."""
    rows = []
    for strategy in STRATEGIES:
        for seed in (0, 1):
            for task in ("one", "two"):
                passed = "1110" if strategy == ROUTER else "1100"
                if strategy == "lora":
                    passed = "1111" if task == "one" else "1000"
                rows.append(record(task, strategy, seed, passed))
    return rows


def test_the_signal_pays_if_it_saves_a_fifth_of_the_compute_at_equal_reward_or_brings_a_larger_area() -> None:
    early, late = ((1.0, 0.0), (3.0, 0.5)), ((1.0, 0.0), (4.0, 0.5))
    for curve, words in (
        (early, "It pays"),  # 25 % less compute
        (late, "It does not"),
        (((1.0, 0.0), (3.5, 0.5)), "It pays"),  # 12 % less, but the area is larger in each pair
    ):
        rows = [record("one", WITH, seed, "1100", curve=curve) for seed in (0, 1)]
        found = "\n".join(signal_lines([*rows, *(record("one", WITHOUT, seed, "1100", curve=late) for seed in (0, 1))]))
        assert words in found
        assert "2 pairs of runs (task and seed) on 1 tasks; in 2 of them" in found
    assert "| compute, as a share | -0.1250 | [-0.1250, -0.1250] |" in found
    assert signal_lines(rows) == ["No run with the signal has a recorded pair without it."]


def test_regret_is_to_the_best_fixed_order_of_each_task() -> None:
    scores = Scores(matrix())
    assert scores.best_order("one") == "lora"
    assert scores.regret("one", ROUTER) == pytest.approx(0.25)
    # On the other task every order but `lora` passes two of four, and the router three: it gains a quarter.
    assert scores.regret("two", ROUTER) == pytest.approx(-0.25)
    assert (scores.wins("one", ROUTER), scores.wins("two", ROUTER)) == ((0, 2), (2, 2))
    assert Scores(record("one", each, 0, "1100") for each in STRATEGIES).wins("one", ROUTER) == (0, 0)


def test_differences_are_paired_by_question_and_drawn_within_tasks() -> None:
    gain, (low, high) = over_tasks(Scores(matrix()), ROUTER, "textgrad", ["one", "two"])
    assert gain == pytest.approx(0.25)
    assert 0 <= low <= gain <= high


def test_an_interval_draws_seeds_and_questions() -> None:
    seeds = np.array([[1.0] * 8, [0.0] * 8])  # runs differ, questions do not
    questions = np.array([[1.0, 0.0] * 4] * 2)  # the other way round
    for values in (seeds, questions):
        mean, (low, high) = mean_of_tasks([values])
        assert mean == 0.5
        assert low < 0.25 < 0.75 < high
    # A quarter of the draws of two seeds hold the first one twice, a quarter the second: the interval is all there is.
    assert mean_of_tasks([seeds])[1] == (0.0, 1.0)


def test_a_candidate_that_no_run_would_deliver_raises_no_curve() -> None:
    curve = [[1.0, 0.2], [3.0, 0.3]]
    assert delivered(record("one", ROUTER, 0, "0000", changed=False, curve=curve))["curve"] == [[1.0, 0.2], [3.0, 0.2]]
    assert delivered(record("one", ROUTER, 0, "1000", curve=curve))["curve"] == curve
    # Dropped before anything was kept: no better than the start. Dropped later: the best of all may be delivered.
    longer = [*curve, [5.0, 0.8], [9.0, 0.9]]
    dropped = delivered(record("one", ROUTER, 0, "1000", curve=longer, dropped=(1, 3)))
    assert dropped["curve"] == [[1.0, 0.2], [3.0, 0.2], [5.0, 0.8], [9.0, 0.9]]


def test_the_best_order_may_be_another_one_at_each_budget() -> None:
    fast, slow = ([[1.0, 0.0], [10.0, 0.5]], [[1.0, 0.0], [40.0, 0.9]])
    scores = Scores(
        record("one", each, 0, "1100", curve=slow if each == "textgrad -> lora" else fast) for each in STRATEGIES
    )
    assert [best_at(scores, ["one"], budget) for budget in (1, 2)] == [("lora", 0.5), ("textgrad -> lora", 0.9)]


def test_only_seeds_that_every_strategy_has_are_compared() -> None:
    scores = Scores(each for each in matrix() if (each["task"], each["strategy"], each["seed"]) != ("one", "random", 1))
    assert scores.seeds("one") == [0]
    assert Scores([record("one", ROUTER, 0, "1111")]).compared() == ["one"]
    assert Scores([*matrix(), record("three", ROUTER, 0, "1111")]).compared() == ["one", "two"]


def test_a_strategy_that_has_few_cells_waits_and_takes_nothing_out_of_the_tables() -> None:
    tasks = [f"task {i}" for i in range(10)]
    others = [record(task, each, 0, "1100") for task in tasks for each in (ROUTER, "lora", "textgrad")]
    late = [record(task, "random", 0, "1100") for task in tasks]
    for done, waiting in ((4, {"random": 0.4}), (7, {"random": 0.7}), (8, {})):
        scores = Scores([*others, *late[:done]])
        assert scores.waiting == waiting
        assert ("random" in scores.strategies) == (not waiting)
        assert len(scores.compared()) == (10 if waiting else 8)
    assert waiting_words(Scores([*others, *late[:4]])) == "Not in the tables yet: `random` (40 % of its cells). "
    assert waiting_words(Scores(others)) == ""
    better = [record(task, "random", 0, "1110") for task in tasks[:4]]
    line = waiting_line(Scores([*others, *better]), "random")
    assert line.startswith("Left out above, `random` has 4 cells on 4 tasks (task 0, task 1, task 2, task 3). ")
    assert "router less it: -0.250 [" in line
    assert waiting_line(Scores(others), "random") == ""


@pytest.mark.parametrize(
    ("curve", "spent"),
    [([[1, 0.0], [3, 0.5], [9, 1.0]], 9), ([[1, 0.0], [3, 0.9], [9, 1.0]], 3), ([[1, 0.4], [3, 0.4]], 1)],
)
def test_time_to_the_final_reward_is_counted_in_compute(curve: Any, spent: float) -> None:
    assert near_final(curve) == spent


def test_reward_over_budgets_is_the_area_under_the_curve() -> None:
    each = record("one", ROUTER, 0, "1111", curve=[[2.0, 0.2], [10.0, 0.5], [30.0, 1.0]])
    assert [reward_at(each, spent) for spent in (0, 9.9, 10, 60)] == [0.2, 0.2, 0.5, 1.0]
    assert over_budgets(each) == pytest.approx((10 * 0.2 + 20 * 0.5 + 30 * 1.0) / 60)
    slower = record("one", "lora", 0, "1111", curve=[[2.0, 0.2], [30.0, 0.5], [61.0, 1.0]])
    assert over_budgets(slower) == pytest.approx((30 * 0.2 + 30 * 0.5) / 60)
    rows = [each, *(dict(slower, strategy=strategy) for strategy in STRATEGIES if strategy != ROUTER)]
    gain, (low, high) = gain_over_budgets(Scores(rows), ROUTER, "lora")
    assert gain == low == high == pytest.approx(42 / 60 - 21 / 60)


def test_runs_with_nothing_to_gain_are_counted_by_whether_they_changed_anything() -> None:
    rows = [record(NOTHING[0], ROUTER, seed, "1111", changed=seed == 0) for seed in range(5)]
    assert left_alone([*rows, record("one", ROUTER, 0, "1111"), record(NOTHING[0], "lora", 0, "1111")]) == (4, 5)


def test_luck_with_nothing_to_gain_is_told_and_only_changed_runs_could_fall() -> None:
    lucky = record(NOTHING[0], ROUTER, 0, "1100", base="1010", curve=((1.0, 0.5), (3.0, 0.4), (9.0, 0.6)))
    same = record(NOTHING[0], ROUTER, 1, "1010", base="1010", changed=False, curve=((1.0, 0.5),))
    lines = nothing_to_gain([lucky, same, record("one", ROUTER, 0, "1111")])
    assert f"| {NOTHING[0]} | 2 | 0.50 | 1.0 | +0.10 | 1 | 9 |" in lines
    assert could_fall([lucky, same, record("one", ROUTER, 0, "1111")]) == 1
    assert lines[-1].startswith("Of the router's 1 runs")


def test_a_result_below_its_base_is_found_only_where_the_interval_says_so() -> None:
    assert made_worse([record("one", ROUTER, 0, "0" * 20, base="1" * 20)]) == ["one, seed 0"]
    assert made_worse([record("one", ROUTER, 0, "0" + "1" * 19, base="1" * 20)]) == []


def test_losses_name_the_cell_and_what_the_better_order_did() -> None:
    found = losses(Scores(matrix()))
    assert [(each["task"], each["seed"], each["order"]) for each in found] == [("one", 0, "lora"), ("one", 1, "lora")]
    assert "| one | 0 | 0.25 | `lora` |" in "\n".join(loss_table(found))


def test_the_tables_and_the_picture_come_from_the_records(tmp_path: Path) -> None:
    scores = Scores(matrix())
    assert any(line.startswith(f"| `{ROUTER}` | 0.750 | +0.000 |") for line in summary_table(scores, ["one", "two"]))
    assert sum(line.startswith("### ") for line in task_tables(scores)) == 2
    goals = {each.name: each for each in figures(scores, matrix(), ["one", "two"])}
    assert goals["mean regret to each task's best fixed order"].holds
    draw(scores, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")
    first = (tmp_path / "picture.svg").read_bytes()
    draw(scores, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_bytes() == first


def test_the_matrix_has_every_strategy_on_every_task_and_ten_runs_of_each_with_nothing_to_gain() -> None:
    tasks = bench_tasks(None)
    cells = list(cells_of(tasks))
    assert len(cells) == len(set(cells))
    for task in tasks.values():
        assert {cell.strategy for cell in cells if cell.task == task.name} == set(STRATEGIES)
        assert task.seeds >= (5 if task.name.startswith("handbook") else 3)
    assert sum(cell.strategy == ROUTER and cell.task in NOTHING for cell in cells) == 10 * len(NOTHING)
    groups = groups_of(cells)
    assert sum(map(len, groups)) == len(cells)
    assert all(len({(cell.task, cell.seed) for cell in group}) == 1 for group in groups)


def test_every_cell_is_run_once_and_one_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells = [Cell("form-only", ROUTER, seed) for seed in range(3)]
    ran: list[Any] = []

    def run(groups: list[list[Job]], control: RunControl) -> Iterator[Event]:
        for job in [each for group in groups for each in group]:
            ran.append(job.arguments)
            failed = job.arguments["seed"] == 1
            yield Event(job, "failed", error="out of luck") if failed else Event(job, "finished", dict(job.arguments))

    monkeypatch.setattr(bench_strategies.strategy_cells, "RECORDS", tmp_path / "records.jsonl")
    failed = bench_strategies.run_all(cells, None, SimpleNamespace(run=run), RunControl(), workers=2)
    assert ran == [{"task": "form-only", "strategy": ROUTER, "seed": seed, "data": ""} for seed in range(3)]
    assert failed == [f"{cells[1]}: out of luck"]
    assert [each["seed"] for each in read_jsonl(tmp_path / "records.jsonl")] == [0, 2]


def test_the_planted_tasks_hold_what_they_are_named_after(tmp_path: Path) -> None:
    tasks = bench_tasks(None)
    shares = {}
    for name in ("form-only", "styled-references", "nothing-possible", "content-only", "nothing-but-chance"):
        task = tasks[name].load(tmp_path)
        shares[name] = sum(task.reward(row, row.reference or "").passed for row in task.train) / len(task.train)
        splits = [{row.fields["key"] for row in rows} for rows in (task.train, task.validation, task.test)]
        if name == "nothing-possible":
            assert not set.intersection(*splits)
        if name == "nothing-but-chance":
            # No answer is more often right than the other, in any split, and no card tells of another split's.
            assert all(
                sum(row.reference == "yes" for row in rows) * 2 == len(rows)
                for rows in (task.train, task.validation, task.test)
            )
            assert len({row.question for row in (*task.train, *task.validation, *task.test)}) == 150
        if name == "form-only":
            assert splits[0] == splits[1] == splits[2] == set(KNOWN.values())
    assert shares == {
        "form-only": 0.0,
        "styled-references": 1.0,
        "nothing-possible": 1.0,
        "content-only": 1.0,
        "nothing-but-chance": 1.0,
    }
    assert set(SPLITS) == {"train", "validation", "test"}


def test_a_record_says_what_a_run_did_and_cost(finished: Run, tmp_path: Path) -> None:
    task = bench_tasks(None)["form-only"]
    scores = read_jsonl(finished.folder / "result" / "test.jsonl")
    found = record_of(Cell("form-only", ROUTER, 0), task, finished.report(), scores, 1.0)
    assert len(found["result"]["passed"]) == len(finished.workspace.task.test)
    assert len(found["curve"]) == len(finished.report()["rounds"]) + 1
    assert found["curve"][-1][0] == pytest.approx(finished.report()["cost"]["tflop"], abs=1e-3)


def test_further_tries_from_the_start_are_taken_out_of_a_record() -> None:
    def step(action: str, kept: bool, reward: float) -> dict[str, Any]:
        return {"action": action, "kept": kept, "reward": reward}

    steps = [("lora", False, 0.2), ("lora", False, 0.3), ("textgrad", True, 0.5), ("lora", True, 0.9)]
    record = {
        "curve": [[1, 0.1], [4, 0.2], [8, 0.3], [10, 0.5], [15, 0.9]],
        "rounds": [step(*each) for each in steps],
        "changed": True,
    }
    cut, fates = without_further_tries(record)
    assert fates == [False]
    assert cut["curve"] == [[1, 0.1], [4, 0.2], [6, 0.5], [11, 0.9]]
    late = {**record, "rounds": [step(*steps[0]), step("lora", True, 0.3), *(step(*each) for each in steps[2:])]}
    cut, fates = without_further_tries(late)
    assert (cut["curve"], fates) == ([[1, 0.1], [4, 0.2]], [True])


@pytest.mark.engines  # 12 s of bootstraps
def test_the_readme_shows_what_is_on_record() -> None:
    records = read_jsonl(RECORDS)
    wanted = in_readme("bench-strategies", readme_lines(Scores(records), records))
    assert README.read_text(encoding="utf-8") == wanted, "run: make bench-strategies, or bench_strategies.py --table"


def test_a_readme_without_the_block_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(ValueError, match=r"README.md has no block between '<!-- bench-strategies: begin"):
        in_readme("bench-strategies", [], tmp_path / "README.md")
