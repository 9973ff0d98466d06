"""Statistics over the records of bench_strategies: means, intervals, regret, wins. No model runs here.

The score of a test question is the share of seeds in which its reply passes every check. Intervals resample seeds and
questions within the tasks that were run. They say nothing about other tasks, and with three seeds they are too narrow.
Some intervals resample tasks too (`tasks_too`); the tasks are few and partly alike, which no interval corrects.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from strategy_cells import FIXED_ORDERS, NOTHING, ROUTER, SINGLE_KINDS

from nslora.tools.evaluation.paired_tests import REWARDS, bootstrap_interval, with_unseen

Estimate = tuple[float, tuple[float, float]]  # a mean and its 95 % interval
Floats = npt.NDArray[np.float64]
Record = Mapping[str, Any]
SAMPLES, SEED = 10_000, 0
BUDGETS = (0.25, 0.5, 0.75, 1.0)  # shares of a task's compute
WHOLE = 0.75  # share of all (task, seed) pairs that a strategy must have on record to be compared
NEAR_FINAL = 0.9  # share of the final gain in validation reward
TIE = 1e-9


@dataclass(frozen=True)
class Row:
    """One strategy on one task. interval: 95 %, over seeds and questions. regret: to the task's best fixed order.

    won: share of the seeds in which no strategy did better; seeds in which all strategies tie are left out, and it is
    None if all seeds tie. over_budgets: validation reward of the best candidate so far, averaged over all budgets up to
    the cap; by_budget: the same at each of `BUDGETS`.
    """

    task: str
    strategy: str
    seeds: int
    all_checks: float
    interval: tuple[float, float]
    reward: float
    won: float | None
    regret: float
    over_budgets: float
    by_budget: tuple[float, ...]
    near_final_tflop: float
    tflop: float
    editor_tokens: float
    wall_s: float


class Scores:
    """The matrix. It compares strategies that have three quarters of the seeds, on the seeds that all of them have.

    waiting: the other strategies, with their share of the seeds. If they were compared, every seed that they lack would
    drop out of every table.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = {(each["task"], each["strategy"], each["seed"]): delivered(each) for each in records}
        self.tasks = list(dict.fromkeys(task for task, _, _ in self.records))
        having = {
            strategy: {(task, seed) for task, each, seed in self.records if each == strategy}
            for strategy in dict.fromkeys(strategy for _, strategy, _ in self.records)
        }
        everywhere = {
            (task, seed)
            for seen in having.values()
            for task, seed in seen
            if sum((task, seed) in each for each in having.values()) > 1
        }
        shares = {name: len(seen & everywhere) / (len(everywhere) or 1) for name, seen in having.items()}
        self.waiting = {name: share for name, share in shares.items() if share < WHOLE * max(shares.values())}
        self.strategies = [name for name in having if name not in self.waiting]
        self._rows: dict[tuple[str, str], Row] = {}  # several tables read each row

    def seeds(self, task: str) -> list[int]:
        """Seeds for which every strategy of this task is on record."""
        having = {
            strategy: {seed for each, other, seed in self.records if (each, other) == (task, strategy)}
            for strategy in self.strategies
        }
        present = [seeds for seeds in having.values() if seeds]
        return sorted(set.intersection(*present)) if len(present) == len(self.strategies) else []

    def compared(self) -> list[str]:
        """Tasks with at least one whole seed."""
        return [task for task in self.tasks if self.seeds(task)]

    def of(self, task: str, strategy: str) -> list[Record]:
        return [self.records[task, strategy, seed] for seed in self.seeds(task)]

    def passed(self, task: str, strategy: str, which: str = "result") -> Floats:
        """(seeds, questions): 1 if the reply passed every check, else 0."""
        return np.array([[float(digit) for digit in each[which]["passed"]] for each in self.of(task, strategy)])

    def questions(self, task: str, strategy: str, which: str = "result") -> Floats:
        """(questions,): share of seeds in which the reply passed every check."""
        return self.passed(task, strategy, which).mean(axis=0)

    def mean(self, task: str, strategy: str) -> float:
        return float(self.questions(task, strategy).mean())

    def best_order(self, task: str) -> str:
        """The fixed order (a single kind counts as one) with the highest mean on this task."""
        orders = [order for order in FIXED_ORDERS if order in self.strategies]
        return max(orders, key=lambda order: self.mean(task, order))

    def regret(self, task: str, strategy: str) -> float:
        return self.mean(task, self.best_order(task)) - self.mean(task, strategy)

    def wins(self, task: str, strategy: str) -> tuple[int, int]:
        """(seeds in which no strategy did better, seeds), without the seeds in which all strategies tie."""
        wins = decided = 0
        for seed in self.seeds(task):
            passed = {each: self.records[task, each, seed]["result"]["passed"].count("1") for each in self.strategies}
            if len(set(passed.values())) > 1:
                wins, decided = wins + (passed[strategy] >= max(passed.values())), decided + 1
        return wins, decided

    def row(self, task: str, strategy: str) -> Row:
        if (task, strategy) not in self._rows:
            self._rows[task, strategy] = self._row(task, strategy)
        return self._rows[task, strategy]

    def _row(self, task: str, strategy: str) -> Row:
        records, (wins, decided) = self.of(task, strategy), self.wins(task, strategy)
        passed = self.passed(task, strategy)
        mean, interval = mean_of_tasks([passed])
        return Row(
            task,
            strategy,
            len(records),
            mean,
            with_unseen(interval, mean, passed.shape[1], bounds=REWARDS),
            float(np.mean([np.mean(each["result"]["rewards"]) for each in records])),
            wins / decided if decided else None,
            self.regret(task, strategy),
            float(np.mean([over_budgets(each) for each in records])),
            tuple(
                float(np.mean([reward_at(each, share * each["cap_tflop"]) for each in records])) for share in BUDGETS
            ),
            float(np.mean([near_final(each["curve"]) for each in records])),
            *(float(np.mean([each["cost"][name] for each in records])) for name in ("tflop", "editor_tokens")),
            float(np.mean([each["wall_s"] for each in records])),
        )

    def rows(self) -> list[Row]:
        return [self.row(task, strategy) for task in self.compared() for strategy in self.strategies]


def delivered(record: Record) -> Record:
    """The record with a curve of candidates that the run would deliver.

    The recorded curve holds the best validation reward of any candidate. A run delivers the best of the candidates that
    beat its start by more than chance. A candidate that was dropped before anything was kept did not beat it, and a run
    that ended with its start had no such candidate. A kept candidate counts from its round on. Sometimes only a later
    round shows that it beats the start, so a curve can be one round early, for every strategy alike.
    """
    curve, kept = [list(record["curve"][0])], False
    for (spent, _), each in zip(record["curve"][1:], record["rounds"], strict=True):
        kept = kept or each["kept"]
        counts = record["changed"] and kept and each["reward"] is not None
        curve.append([spent, max(curve[-1][1], each["reward"]) if counts else curve[-1][1]])
    return {**record, "curve": curve}


def without_further_tries(record: Record) -> tuple[Record, list[bool]]:
    """The run without training jobs that follow a dropped one while nothing was kept; whether each of them was kept.

    A dropped update changes nothing that a later one begins with, so what follows stays as it is recorded; after a job
    that was kept nothing is known, and the run ends before it.
    """
    rounds: list[Any] = []
    curve, fates = [list(record["curve"][0])], []
    for (before, _), (after, _), each in zip(record["curve"], record["curve"][1:], record["rounds"], strict=False):
        kept = any(one["kept"] for one in rounds)
        if each["action"] == "lora" and not kept and any(one["action"] == "lora" for one in rounds):
            fates.append(each["kept"])
            if each["kept"]:
                break
            continue
        rounds.append(each)
        curve.append([curve[-1][0] + after - before, max(curve[-1][1], each["reward"] or 0.0)])
    return {**record, "rounds": rounds, "curve": curve}, fates


def near_final(curve: Sequence[Sequence[float]]) -> float:
    """TFLOP at which the validation reward has `NEAR_FINAL` of its gain; the first evaluation's if it never rose."""
    start, end = curve[0][1], curve[-1][1]
    return next(spent for spent, reward in curve if reward >= start + NEAR_FINAL * (end - start) - TIE)


def reward_at(record: Record, tflop: float) -> float:
    """Validation reward of the best candidate after `tflop`; before the first evaluation ends, the start's reward."""
    reached = [reward for spent, reward in record["curve"] if spent <= tflop]
    return float(reached[-1] if reached else record["curve"][0][1])


def over_budgets(record: Record) -> float:
    """Mean of `reward_at` over all budgets from nothing to the cap."""
    curve, cap = record["curve"], record["cap_tflop"]
    ends = [min(spent, cap) for spent, _ in curve[1:]] + [cap]
    area, begin = 0.0, 0.0
    for end, (_, reward) in zip(ends, curve, strict=True):
        area, begin = area + (end - begin) * reward, end
    return float(area / cap)


def gain_over_budgets(scores: Scores, ours: str, theirs: str, *, tasks_too: bool = False) -> Estimate:
    """Mean over tasks of the difference in `over_budgets`, and its 95 % interval (resamples runs within tasks)."""
    return _paired(scores, ours, theirs, over_budgets, tasks_too)


def gain_at(scores: Scores, ours: str, theirs: str, budget: int, *, tasks_too: bool = False) -> Estimate:
    """Mean over tasks of the difference in validation reward at `BUDGETS[budget]`, and its 95 % interval."""
    return _paired(scores, ours, theirs, lambda each: reward_at(each, BUDGETS[budget] * each["cap_tflop"]), tasks_too)


def more_compute(scores: Scores, ours: str, theirs: str, *, tasks_too: bool = False) -> Estimate:
    """Mean over tasks of the difference in FLOPs, as a share of the mean that `theirs` take, and its 95 % interval."""

    def spent(record: Record) -> float:
        return float(record["curve"][-1][0])

    whole = float(np.mean([np.mean([spent(each) for each in scores.of(task, theirs)]) for task in scores.compared()]))
    mean, (low, high) = _paired(scores, ours, theirs, spent, tasks_too)
    return mean / whole, (low / whole, high / whole)


def _paired(scores: Scores, ours: str, theirs: str, value: Callable[[Record], float], tasks_too: bool) -> Estimate:
    def values(task: str, strategy: str) -> Floats:
        return np.array([value(each) for each in scores.of(task, strategy)])

    return mean_of_tasks(
        [(values(task, ours) - values(task, theirs))[:, None] for task in scores.compared()], tasks_too=tasks_too
    )


def over_tasks(scores: Scores, ours: str, theirs: str, tasks: Sequence[str], *, tasks_too: bool = False) -> Estimate:
    """Mean over tasks of the difference in all checks, paired by seed and question."""
    return mean_of_tasks(
        [scores.passed(task, ours) - scores.passed(task, theirs) for task in tasks], tasks_too=tasks_too
    )


def mean_of_tasks(values: Sequence[Floats], *, tasks_too: bool = False) -> Estimate:
    """Mean of the tasks' means. The 95 % interval resamples seeds and, crossed with them, questions within each task.

    values: (seeds, questions) per task. tasks_too: also resample tasks, as an estimate for other tasks like these.
    """
    draw = np.random.default_rng(SEED)

    def times(size: int) -> Floats:
        """(SAMPLES, size): how often each of `size` items was drawn."""
        return draw.multinomial(size, np.full(size, 1 / size), size=SAMPLES).astype(float)

    by_task = np.array(
        [((times(each.shape[0]) @ each) * times(each.shape[1])).sum(axis=1) / each.size for each in values]
    )
    weights = times(len(values)).T / len(values) if tasks_too else 1 / len(values)
    means = (by_task * weights).sum(axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([each.mean() for each in values])), (float(low), float(high))


def best_single_order(scores: Scores, tasks: Sequence[str]) -> str:
    """The fixed order with the highest mean over all tasks. It is known only after all strategies have run."""
    orders = [order for order in FIXED_ORDERS if order in scores.strategies]
    return max(orders, key=lambda order: float(np.mean([scores.mean(task, order) for task in tasks])))


def best_at(scores: Scores, tasks: Sequence[str], budget: int) -> tuple[str, float]:
    """The fixed order with the highest mean validation reward at `BUDGETS[budget]`, and that reward."""

    def reached(order: str) -> float:
        return float(np.mean([scores.row(task, order).by_budget[budget] for task in tasks]))

    best = max((order for order in FIXED_ORDERS if order in scores.strategies), key=reached)
    return best, reached(best)


def left_alone(records: Iterable[Record], tasks: Collection[str] = NOTHING) -> tuple[int, int]:
    """(unchanged results, runs) of the router on the tasks with nothing to gain."""
    runs = [each for each in records if each["strategy"] == ROUTER and each["task"] in tasks]
    return sum(not each["changed"] for each in runs), len(runs)


def could_fall(records: Iterable[Record]) -> int:
    """Runs of the router that changed a base which passes a test question. Only these can end below their base."""
    return sum(each["strategy"] == ROUTER and each["changed"] and "1" in each["base"]["passed"] for each in records)


def made_worse(records: Iterable[Record], strategy: str = ROUTER) -> list[str]:
    """Runs whose result is significantly below their own base on the test questions."""
    found = []
    for each in records:
        if each["strategy"] == strategy:
            pairs = zip(each["result"]["passed"], each["base"]["passed"], strict=True)
            if bootstrap_interval([float(after) - float(before) for after, before in pairs])[1] < 0:
                found.append(f"{each['task']}, seed {each['seed']}")
    return found


def losses(scores: Scores) -> list[dict[str, Any]]:
    """Cells in which the task's best fixed order beats the router, with the updates of both."""
    found = []
    for task in scores.compared():
        order = scores.best_order(task)
        for seed in scores.seeds(task):
            ours, theirs = scores.records[task, ROUTER, seed], scores.records[task, order, seed]
            behind = (theirs["result"]["passed"].count("1") - ours["result"]["passed"].count("1")) / len(
                ours["result"]["passed"]
            )
            if behind > TIE:
                found.append(
                    {
                        "task": task,
                        "seed": seed,
                        "order": order,
                        "behind": behind,
                        "router": in_one_line(ours),
                        "fixed": in_one_line(theirs),
                        "reason": reason(ours, theirs),
                    }
                )
    return sorted(found, key=lambda each: -each["behind"])


def in_one_line(record: Record) -> str:
    """The updates of a run in one line (dropped ones in brackets), then why it ended."""
    steps = [each["action"] if each["kept"] else f"({each['action']})" for each in record["rounds"]]
    return f"{' '.join(steps) or 'no update'}: {record['stop']}"


def reason(ours: Record, theirs: Record) -> str:
    """Why the router lost, as far as the records show."""

    def kept(record: Record) -> list[str]:
        return [each["action"] for each in record["rounds"] if each["kept"]]

    if kept(ours) == kept(theirs) and ours["curve"][-1][1] == theirs["curve"][-1][1]:
        return "same updates kept, same validation reward: not explained by the record"
    if ours["curve"][-1][1] >= theirs["curve"][-1][1]:
        return "at least as good on validation: chosen well, generalised less"
    if len(ours["rounds"]) < len(theirs["rounds"]) and kept(theirs)[: len(kept(ours))] == kept(ours):
        return "stopped where the other order went on and gained"
    return "another path: " + ("worse first update" if kept(ours)[:1] != kept(theirs)[:1] else "worse later update")


def single_kinds(scores: Scores) -> list[str]:
    """The strategies of one kind of update that are compared."""
    return [each for each in SINGLE_KINDS if each in scores.strategies]
