"""Strategies on hand-made trees, whose right values were computed by hand."""

from collections.abc import Mapping, Sequence

import pytest
from tree_lines import line

from nslora.router import RouterDecision, Tree, evaluate, held_out, held_out_fit, lead, read_trees
from nslora.tools.errors import SettingsError
from nslora.tools.router.trees import Node, Order, chance, walk, walk_along
from nslora.tools.schema import KINDS

SHALLOW = [line("a", "", 1, 0.2, 0.1), line("a", "lora", 3, 0.6, 0.5), line("a", "textgrad", 2, 0.4, 0.6)]
DEEP = [
    line("b", "", 1, 0.2),
    line("b", "lora", 4, 0.3),
    line("b", "textgrad", 2, 0.5, leaf="target reached"),
    line("b", "lora/lora", 8, 0.9),
    line("b", "lora/textgrad", 5, 0.3),
]


def test_the_areas_are_those_computed_by_hand() -> None:
    (tree,) = read_trees(SHALLOW)
    assert tree.cap == 4.5  # half as much again as the dearest node
    areas = {order: walk_along(order, tree) for order in ((), ("lora",), ("textgrad",), ("lora", "lora"))}
    wanted: Mapping[Order, tuple[float, float]] = {
        (): (0.2, 0.1),
        ("lora",): ((3 * 0.2 + 1.5 * 0.6) / 4.5, (3 * 0.1 + 1.5 * 0.5) / 4.5),
        ("textgrad",): ((2 * 0.2 + 2.5 * 0.4) / 4.5, (2 * 0.1 + 2.5 * 0.6) / 4.5),
        ("lora", "lora"): ((3 * 0.2 + 1.5 * 0.6) / 4.5, (3 * 0.1 + 1.5 * 0.5) / 4.5),  # as far as the tree goes
    }
    # The oracle has the base up to 2, the edit up to 3 and then the adapter, by validation, on either split.
    oracle = (2 * 0.2 + 1 * 0.4 + 1.5 * 0.6) / 4.5, (2 * 0.1 + 1 * 0.6 + 1.5 * 0.5) / 4.5
    for order, (validation, test) in wanted.items():
        assert areas[order].area == pytest.approx({"validation": validation, "test": test})
        assert areas[order].regret == pytest.approx({"validation": oracle[0] - validation, "test": oracle[1] - test})
    both = [areas["lora",].regret, areas["textgrad",].regret]
    assert chance(tree)["validation"] == pytest.approx(sum(each["validation"] for each in both) / 2)


def test_chance_draws_each_step_and_a_leaf_ends_a_path() -> None:
    (tree,) = read_trees(DEEP)
    ends = {"textgrad": 0.5, "lora/lora": 0.25, "lora/textgrad": 0.25}
    regrets = {path: walk_along(tuple(path.split("/")), tree).regret["validation"] for path in ends}  # type: ignore[arg-type]
    assert chance(tree)["validation"] == pytest.approx(sum(share * regrets[path] for path, share in ends.items()))
    assert walk("textgrad", tree).path == ("textgrad",)
    assert walk("lora -> textgrad", tree).path == ("lora", "lora")
    assert walk("lora once -> textgrad", tree).path == ("lora", "textgrad")
    assert walk("neurosymbolic", tree).path == ("textgrad",)  # the need is form
    (cut,) = read_trees(DEEP[:4])  # one node of the second level has not run
    assert (cut.depth, walk("lora", cut).path) == (1, ("lora",))
    (whole,) = read_trees(DEEP[:4], partial=True)
    assert (whole.depth, walk("lora", whole).path) == (2, ("lora", "lora"))
    assert read_trees([DEEP[0], DEEP[3]], partial=True) == []  # its way from the base is not on record


def test_a_strategy_is_compared_with_the_orders_and_the_oracle() -> None:
    trees = read_trees([*SHALLOW, *DEEP])

    def headroom(node: Node) -> str | RouterDecision:
        if node.input.rounds_left == 1:
            return RouterDecision("finish", "enough", {})
        return max(KINDS, key=lambda kind: node.knows["bounds"][kind])

    found = evaluate(headroom, trees)
    assert [each.path for each in found.walks] == [(), ("lora",)]  # a tree of one update has one round left at once
    # b: 0.2 up to 4, 0.3 from there to 12; the oracle has the edit from 2 and lora/lora from 8.
    regret = (2 * 0.2 + 6 * 0.5 + 4 * 0.9) / 12 - (4 * 0.2 + 8 * 0.3) / 12
    assert found.walks[1].regret["validation"] == pytest.approx(regret)
    assert found.regret["validation"][0] == pytest.approx((found.walks[0].regret["validation"] + regret) / 2)
    low, high = found.regret["validation"][1:]
    assert (low, high) == pytest.approx(sorted(each.regret["validation"] for each in found.walks))  # two cells, drawn
    # a: 0.333 by lora, 0.311 by edits. b: (4*.2 + 4*.3 + 4*.9)/12 = 0.467 by lora twice, (2*.2 + 10*.5)/12 = 0.45.
    assert found.best_orders == {"a, m, e": ("lora",), "b, m, e": ("lora", "lora")}
    assert found.best_single == ("lora", "lora")
    assert found.level == 0.0
    assert found.over_best_orders["validation"][0] == pytest.approx(((0.2 - 1.5 / 4.5) + (3.2 - 5.6) / 12) / 2)
    assert evaluate("lora", trees).level == 1.0


def test_what_is_chosen_on_other_tasks_is_scored_on_the_one_left_out() -> None:
    third = [line("c", "", 1, 0.2), line("c", "lora", 4, 0.2), line("c", "textgrad", 2, 0.8)]
    trees = read_trees([*SHALLOW, *DEEP, *third])
    found, chosen = held_out({"weights": "lora", "prompt": "textgrad"}, trees)
    # Prompts lose a little on a and b, weights lose much on c.
    assert chosen == {"a": "prompt", "b": "prompt", "c": "weights"}
    assert [each.path for each in found.walks] == [("textgrad",), ("textgrad",), ("lora",)]


def test_what_is_fitted_to_other_tasks_walks_the_one_left_out() -> None:
    trees = read_trees([*SHALLOW, *DEEP])
    seen = []

    def fit(others: Sequence[Tree]) -> str:
        seen.append([tree.task for tree in others])
        return "lora" if others[0].task == "a" else "textgrad"

    found = held_out_fit(fit, trees)
    assert seen == [["b"], ["a"]]
    assert [each.path for each in found.walks] == [("textgrad",), ("lora", "lora")]
    over = lead(found, evaluate("lora", trees))
    assert over[0] == pytest.approx(((2 * 0.2 + 2.5 * 0.4) - (3 * 0.2 + 1.5 * 0.6)) / 4.5 / 2)  # b is the same, half


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(SettingsError, match="make bench-decisions"):
        evaluate("lora", [])
    with pytest.raises(SettingsError, match="wanted lora, textgrad, finish"):
        evaluate(lambda node: "prayer", read_trees(SHALLOW))
