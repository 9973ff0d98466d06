"""Strategies scored on recorded decision trees, in seconds and without a model.

A tree holds what every sequence of updates brought on one task, with one seed, model and editor (`make
bench-decisions` records them). A strategy is a path through it.

    value        reward of the candidate that a run would deliver at a node, on validation or on test
    area         mean of the value over all budgets of compute from 0 to half as much again as the dearest node takes,
                 so that what the last update brings counts too
    oracle       at each budget the node of highest validation value within it, under the same rule of keep or drop
    regret       area of the oracle less that of the strategy
    order        a fixed sequence of updates, followed as far as the tree goes
    chance       mean over all whole paths, each step drawn with equal probability

Formulas and thresholds are chosen by areas on validation; test is for reports. Intervals are 95 %, from a bootstrap
over cells (task, model, editor) and, within each, over its trees.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nslora.tools.classifier.attribution import Need
from nslora.tools.errors import SettingsError
from nslora.tools.files import read_jsonl
from nslora.tools.router.inputs import RouterDecision, RouterInput, Strategy
from nslora.tools.router.monitoring_signal import Progress, Update
from nslora.tools.router.strategies import strategy_named
from nslora.tools.schema import KINDS, Kind

Order = tuple[Kind, ...]
Split = Literal["validation", "test"]
Estimate = tuple[float, float, float]  # mean, and the ends of its interval
SAMPLES, SEED = 10_000, 0
REACH = 1.5
TIE = 1e-9


@dataclass(frozen=True)
class Node:
    """What a run holds after the updates of its path.

    Attributes:
        path: The updates, oldest first.
        leaf: Why no update follows under any strategy; "" if one may.
        input: The router's input there.
        knows: Further numbers that a router may use: upper bounds, prompt length, losses and others.
        update: What the last update brought; None at the base.
        value: Of what the run would deliver, by split.
        tflop: Model compute of the run so far.
        editor_tokens: Of the run so far.
    """

    path: Order
    leaf: str
    input: RouterInput
    knows: Mapping[str, Any]
    update: Mapping[str, Any] | None
    value: Mapping[Split, float]
    tflop: float
    editor_tokens: float = 0.0


@dataclass(frozen=True)
class Tree:
    """The nodes of one task, seed, model and editor, by their path."""

    task: str
    seed: int
    model: str
    editor: str
    nodes: Mapping[Order, Node]

    @property
    def depth(self) -> int:
        return max(map(len, self.nodes))

    @property
    def cap(self) -> float:
        """Largest budget, in TFLOP."""
        return REACH * max(node.tflop for node in self.nodes.values())

    @property
    def cell(self) -> str:
        """Trees of one cell differ in their seed."""
        return f"{self.task}, {self.model}, {self.editor}"


# What chooses: a strategy, its name, or a function of a node.
Choice = str | Strategy | Callable[[Node], str | RouterDecision]


@dataclass(frozen=True)
class Walk:
    """A strategy in one tree. ends: the last node of its path. area: by split. regret: on that split, to the oracle."""

    tree: Tree
    path: Order
    area: Mapping[Split, float]
    regret: Mapping[Split, float]

    @property
    def nodes(self) -> list[Node]:
        """From the base to the end."""
        return [self.tree.nodes[self.path[:i]] for i in range(len(self.path) + 1)]

    @property
    def end(self) -> Node:
        return self.tree.nodes[self.path]


@dataclass(frozen=True)
class Evaluation:
    """A strategy on all trees.

    Attributes:
        walks: One for each tree.
        regret: To the oracle.
        chance: Regret of chance.
        over_best_single: Area above that of the order that is best over all cells.
        over_best_orders: Area above that of each cell's own best order, which is known only afterwards.
        level: Share of the trees in which the strategy is level with its cell's best order or ahead.
        best_single: The order that is best over all cells.
        best_orders: The best order of each cell.
    """

    walks: Sequence[Walk]
    regret: Mapping[Split, Estimate]
    chance: Mapping[Split, float]
    over_best_single: Mapping[Split, Estimate]
    over_best_orders: Mapping[Split, Estimate]
    level: float
    best_single: Order
    best_orders: Mapping[str, Order]


def read_trees(records: str | Path | Iterable[Mapping[str, Any]], *, partial: bool = False) -> list[Tree]:
    """The trees of a JSONL file, or of its lines.

    Each is cut to the depth to which all of its nodes are on record, and a base alone is no tree: a path that ends
    because nothing was recorded would be mistaken for a strategy's choice. partial: with all nodes that can be reached.
    """
    rows = read_jsonl(Path(records)) if isinstance(records, str | Path) else records
    found: dict[tuple[str, int, str, str], dict[Order, Node]] = {}
    for row in rows:
        node = _node(row)
        found.setdefault((row["task"], row["seed"], row["model"], row["editor"]), {})[node.path] = node
    trees = []
    for identity, nodes in found.items():
        depth = max(map(len, nodes)) if partial else _complete_depth(nodes)
        kept = {path: node for path, node in nodes.items() if len(path) <= depth}
        reached = {path: node for path, node in kept.items() if all(path[:i] in kept for i in range(len(path)))}
        if len(reached) > 1:
            trees.append(Tree(*identity, nodes=reached))
    return trees


def _complete_depth(nodes: Mapping[Order, Node]) -> int:
    """The depth to which no node lacks an update."""
    lacking = [
        len(path) for path, node in nodes.items() if not node.leaf and any((*path, kind) not in nodes for kind in KINDS)
    ]
    return min(lacking, default=max(map(len, nodes)))


def _node(row: Mapping[str, Any]) -> Node:
    given, delivers = dict(row["router"]), row["delivers"]
    given["need"] = Need(**given["need"]) if given["need"] else None
    given["progress"] = {kind: Progress(**each) for kind, each in given["progress"].items()}
    lists = ("epoch_losses_nats", "grad_norms")
    given["history"] = tuple(
        Update(**{**each, **{name: tuple(each[name]) for name in lists}}) for each in given["history"]
    )
    steps = row["path"].split("/") if row["path"] else []
    value: dict[Split, float] = {"validation": delivers["validation"], "test": float(np.mean(delivers["test"]))}
    spent = row["spent"]
    return Node(
        tuple(kind for step in steps for kind in KINDS if kind == step),
        row["leaf"],
        RouterInput(**given),
        row["knows"],
        row["update"],
        value,
        spent["tflop"],
        spent["editor_tokens"],
    )


def evaluate(strategy: Choice, trees: Sequence[Tree]) -> Evaluation:
    """Score a strategy on recorded trees.

    Args:
        strategy: A strategy, its name ("neurosymbolic", "lora -> textgrad", "package.module:function"), or a function
            of a `Node` that returns "lora", "textgrad", "finish" or a `RouterDecision`.
        trees: What `read_trees` gave.

    Raises:
        SettingsError: If there is no tree or no such strategy, or it returns no action.
    """
    return evaluation_of([walk(strategy, tree) for tree in trees])


def held_out(candidates: Mapping[str, Choice], trees: Sequence[Tree]) -> tuple[Evaluation, dict[str, str]]:
    """Leave one task out: on each task the candidate of least regret on the others, by validation.

    Returns the evaluation of these choices, and the name of the candidate that each task got.
    """
    walks = {name: [walk(candidate, tree) for tree in trees] for name, candidate in candidates.items()}
    chosen = {}
    for task in dict.fromkeys(tree.task for tree in trees):
        regrets = {
            name: _mean_of_cells([each for each in found if each.tree.task != task], lambda w: w.regret["validation"])
            for name, found in walks.items()
        }
        chosen[task] = min(regrets, key=lambda name: regrets[name])
    return evaluation_of([walks[chosen[tree.task]][i] for i, tree in enumerate(trees)]), chosen


def held_out_fit(fit: Callable[[Sequence[Tree]], Choice], trees: Sequence[Tree]) -> Evaluation:
    """Leave one task out: each task is walked by what `fit` made of the trees of the others."""
    tasks = dict.fromkeys(tree.task for tree in trees)
    fitted = {task: fit([tree for tree in trees if tree.task != task]) for task in tasks}
    return evaluation_of([walk(fitted[tree.task], tree) for tree in trees])


def lead(one: Evaluation, other: Evaluation, split: Split = "validation") -> Estimate:
    """Area of one strategy above that of another on the same trees, paired by tree."""
    pairs = list(zip(one.walks, other.walks, strict=True))
    return estimate([a.tree for a, _ in pairs], [a.area[split] - b.area[split] for a, b in pairs])


def walk(strategy: Choice, tree: Tree) -> Walk:
    """The path of a strategy in a tree; it ends where the strategy does, at a leaf, or where nothing was recorded."""
    choice = strategy_named(strategy) if isinstance(strategy, str) else strategy
    node = tree.nodes[()]
    while not node.leaf and len(node.path) < tree.depth:
        here = replace(node, input=replace(node.input, rounds_left=tree.depth - len(node.path)))
        answer = choice(here) if callable(choice) else choice.choose(here.input)
        action = answer.action if isinstance(answer, RouterDecision) else answer
        if action not in (*KINDS, "finish"):
            raise SettingsError(f"The strategy returned {answer!r}: wanted lora, textgrad, finish or a RouterDecision.")
        below = tree.nodes.get((*node.path, *(kind for kind in KINDS if kind == action)))
        if below is None or below is node:
            break
        node = below
    return walk_along(node.path, tree)


def walk_along(order: Order, tree: Tree) -> Walk:
    """The path of a fixed order, as far as the tree goes."""
    path = next(order[:i] for i in range(len(order), -1, -1) if order[:i] in tree.nodes)
    nodes = [tree.nodes[path[:i]] for i in range(len(path) + 1)]
    best = oracle(tree)
    area: dict[Split, float] = {}
    regret: dict[Split, float] = {}
    for split in SPLITS:
        area[split] = _area(nodes, split, tree.cap)
        regret[split] = _area(best, split, tree.cap) - area[split]
    return Walk(tree, path, area, regret)


SPLITS: tuple[Split, Split] = ("validation", "test")


def oracle(tree: Tree) -> list[Node]:
    """The base, then each node that is better on validation than all cheaper ones."""
    best: list[Node] = [tree.nodes[()]]
    for node in sorted(tree.nodes.values(), key=lambda each: (each.tflop, -each.value["validation"])):
        if node.value["validation"] > best[-1].value["validation"] + TIE:
            best.append(node)
    return best


def value_at(nodes: Sequence[Node], share: float, split: Split, tree: Tree) -> float:
    """Value of the last of these nodes within a share of the tree's largest budget; that of the base before it."""
    within = [node for node in nodes[1:] if node.tflop <= share * tree.cap]
    return (within[-1] if within else nodes[0]).value[split]


def _area(nodes: Sequence[Node], split: Split, cap: float) -> float:
    """Mean value over all budgets up to `cap`; before the base is measured its value holds as well."""
    ends = [*(node.tflop for node in nodes[1:]), cap]
    begins = [0.0, *ends[:-1]]
    spans = [max(0.0, end - begin) for begin, end in zip(begins, ends, strict=True)]
    return sum(span * node.value[split] for span, node in zip(spans, nodes, strict=True)) / cap


def chance(tree: Tree) -> Mapping[Split, float]:
    """Mean regret over all whole paths, each step drawn with equal probability."""
    ends = [path for path in tree.nodes if not any((*path, kind) in tree.nodes for kind in KINDS)]
    weights = np.array([np.prod([0.5 if _forks(tree, path[:i]) else 1.0 for i in range(len(path))]) for path in ends])
    walks = [walk_along(path, tree) for path in ends]
    return {split: float(np.average([each.regret[split] for each in walks], weights=weights)) for split in SPLITS}


def _forks(tree: Tree, path: Order) -> bool:
    return all((*path, kind) in tree.nodes for kind in KINDS)


def evaluation_of(walks: Sequence[Walk]) -> Evaluation:
    """All figures of a strategy, from its walks."""
    if not walks:
        raise SettingsError("There is no tree to score a strategy on: record some with make bench-decisions.")
    trees = [each.tree for each in walks]
    orders = [
        order for length in range(max(tree.depth for tree in trees) + 1) for order in product(KINDS, repeat=length)
    ]
    along = {order: [walk_along(order, tree) for tree in trees] for order in orders}

    def best(of: Sequence[int]) -> Order:
        """The order of largest area on validation in these trees; of equal ones the shortest."""
        return max(
            orders, key=lambda order: _mean_of_cells([along[order][i] for i in of], lambda w: w.area["validation"])
        )

    single = best(range(len(trees)))
    cells = dict.fromkeys(tree.cell for tree in trees)
    own = {cell: best([i for i, tree in enumerate(trees) if tree.cell == cell]) for cell in cells}
    against = {"single": along[single], "own": [along[own[tree.cell]][i] for i, tree in enumerate(trees)]}

    def over(which: str) -> dict[Split, Estimate]:
        pairs = list(zip(walks, against[which], strict=True))
        return {split: estimate(trees, [a.area[split] - b.area[split] for a, b in pairs]) for split in SPLITS}

    by_chance = [chance(tree) for tree in trees]
    level = [a.area["validation"] >= b.area["validation"] - TIE for a, b in zip(walks, against["own"], strict=True)]
    return Evaluation(
        walks,
        {split: estimate(trees, [each.regret[split] for each in walks]) for split in SPLITS},
        {split: estimate(trees, [each[split] for each in by_chance])[0] for split in SPLITS},
        over("single"),
        over("own"),
        float(np.mean(level)),
        single,
        own,
    )


def _mean_of_cells(walks: Sequence[Walk], value: Callable[[Walk], float]) -> float:
    """Mean of the cells' means; 0 of nothing."""
    cells = dict.fromkeys(each.tree.cell for each in walks)
    means = [np.mean([value(each) for each in walks if each.tree.cell == cell]) for cell in cells]
    return float(np.mean(means)) if means else 0.0


def estimate(trees: Sequence[Tree], values: Sequence[float]) -> Estimate:
    """Mean of the cells' means, with an interval that draws cells and, within each, its trees."""
    by_cell: dict[str, list[float]] = {}
    for tree, value in zip(trees, values, strict=True):
        by_cell.setdefault(tree.cell, []).append(value)
    draw = np.random.default_rng(SEED)
    within = np.array([draw.choice(each, size=(SAMPLES, len(each))).mean(axis=1) for each in by_cell.values()])
    drawn = draw.integers(len(within), size=(SAMPLES, len(within)))
    means = np.take_along_axis(within.T, drawn, axis=1).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([np.mean(each) for each in by_cell.values()])), float(low), float(high)
