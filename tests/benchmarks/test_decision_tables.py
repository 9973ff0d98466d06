"""Tables over decision trees, on lines made by hand: the learnt model, the loop's losses, ends of training jobs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import learnt_router
import pytest
from decision_tables import LEARNT, by_budget, learnt_words, sides
from probe_tables import PAIRS, stopping, variance
from tree_lines import line

from nslora.router import Tree, evaluate, held_out_fit, read_trees, strategy_named


def tree(task: str, share: float, values: dict[str, float], **tests: float) -> Iterator[dict[str, Any]]:
    """Nodes with an update each, kept if its value is above that of the node above. share: that needs content."""
    for path, value in values.items():
        found = line(task, path, 1 + 2 * len(path.split("/")) * bool(path), value, tests.get(path.replace("/", "_")))
        found["router"]["need"]["p_content"] = share
        found["router"]["cost_tokens"] = {"lora": 100.0, "textgrad": 100.0}
        if path:
            before = values[path.rpartition("/")[0]]
            found["update"] = {"kept": value > before, "reward_before": before, "reward_after": value}
        yield found


WEIGHTS = {"": 0.2, "lora": 0.8, "textgrad": 0.2}
EDITS = {"": 0.2, "lora": 0.2, "textgrad": 0.8}


@pytest.fixture
def trees() -> list[Tree]:
    """Four tasks on which the share of content tells the kind that is kept."""
    tasks = (("a", 0.9, WEIGHTS), ("b", 1.0, WEIGHTS), ("c", 0.1, EDITS), ("d", 0.0, EDITS))
    return read_trees([each for task, share, values in tasks for each in tree(task, share, values)])


def test_a_learnt_model_chooses_what_was_kept_on_other_tasks_and_its_file_keeps_it(
    trees: list[Tree], tmp_path: Path
) -> None:
    found = held_out_fit(learnt_router.fit, trees)
    assert [each.path for each in found.walks] == [("lora",), ("lora",), ("textgrad",), ("textgrad",)]
    model, file = learnt_router.fit(trees), tmp_path / "router.json"
    learnt_router.write(model, trees, file)
    assert len(file.read_text().splitlines()) == 6
    given = replace(trees[0].nodes[()].input, rounds_left=1)
    for kind in ("lora", "textgrad"):
        wanted = model.probability(given, kind)
        assert learnt_router.read(file).probability(given, kind) == pytest.approx(wanted, abs=1e-3)
    assert model.probability(given, "lora") > 0.5 > model.probability(given, "textgrad")
    assert model(replace(given, rounds_left=0)) == "finish"
    assert strategy_named("learnt_router:choose").choose(given).action in ("lora", "textgrad")  # the committed file
    assert learnt_router.fit(trees[:2]).coefficients["lora"][1:] == [0.0] * len(learnt_router.FEATURES)  # always kept


def test_a_learnt_model_that_is_no_better_is_a_null_result(trees: list[Tree]) -> None:
    formula = evaluate("neurosymbolic", trees)
    assert "a null result" in learnt_words({"neurosymbolic": formula, LEARNT: formula})
    better = {"neurosymbolic": evaluate("textgrad", trees[:2]), LEARNT: evaluate("lora", trees[:2])}
    assert learnt_words(better).endswith("better than the formula.")
    assert learnt_words({"neurosymbolic": better[LEARNT], LEARNT: better["neurosymbolic"]}).endswith("worse.")
    assert "takes trees of" in learnt_words({})


def test_rewards_by_budget_are_those_of_the_paths() -> None:
    """The cap is 1.5 * 5: an edit ends at 3 (40 % of it), a second update at 5 (67 %)."""
    values = {"": 0.2, "lora": 0.2, "textgrad": 0.6, "lora/lora": 0.2, "lora/textgrad": 0.2}
    trees = read_trees(tree("a", 0.0, {**values, "textgrad/lora": 0.9, "textgrad/textgrad": 0.6}))
    found = {each.split(" | ")[0]: each for each in by_budget(trees, evaluate("textgrad", trees))}
    assert found["| oracle"] == "| oracle | 0.200 | 0.600 | 0.900 | 0.900 |"
    assert found["| neurosymbolic"] == "| neurosymbolic | 0.200 | 0.600 | 0.600 | 0.600 |"
    assert found["| best single order"] == "| best single order | 0.200 | 0.600 | 0.900 | 0.900 |"
    assert found["| no update"].endswith("| 0.200 | 0.200 | 0.200 | 0.200 |")


def test_every_loss_of_the_loop_is_named_with_its_reason() -> None:
    wrong = tree("a", 0.0, {"": 0.2, "lora": 0.8, "textgrad": 0.3}, textgrad=0.3, lora=0.7)
    luck = tree("b", 0.0, {"": 0.2, "lora": 0.5, "textgrad": 0.5}, textgrad=0.4, lora=0.6)
    found = "\n".join(sides(read_trees([*wrong, *luck])))
    assert "- a (m, seed 0): 0.400 behind weights only, textgrad against lora: another update 1: " in found
    assert "need form" in found
    assert "- b (m, seed 0): 0.200 behind weights only, textgrad against lora: no worse on validation, less on" in found
    fine = tree("c", 0.0, EDITS)
    assert "behind neither side" in "\n".join(sides(read_trees(fine)))


def test_ends_of_training_jobs_are_compared_in_pairs_each_job_once() -> None:
    def job(number: int, gain: float, **more: Any) -> list[dict[str, Any]]:
        base, weights = tree(f"t{number}", 1.0, {"": 0.2, "lora": 0.8})
        stopped = {"epoch": 2, "reward": 0.8 + gain, "reward_whole": 0.8, "won": 1, "lost": 0}
        probes = {"held_out": {"losses_nats": [3.0, 1.0, 1.5, 1.2]}, "stopped": stopped, "variance": None}
        weights["update"] |= {"candidate": {"adapter": f"a{number}", "prompt": "p"}, **probes, **more}
        return [base, weights]

    found = [each for number in range(PAIRS) for each in job(number, 0.1)]
    words = "\n".join(stopping(read_trees(found, partial=True)))
    assert f"It rises in {PAIRS} of {PAIRS} recorded jobs" in words
    assert "+0.100 [+0.100, +0.100], cells and jobs drawn; epochs saved: 25% of these jobs" in words
    assert "saves compute at no loss" in words
    assert "| t0 | lora | 2 | 4 | 0.900 | 0.800 | 1 | 0 |" in words
    worse = [each for number in range(PAIRS) for each in job(number, -0.1)]
    assert "costs reward" in "\n".join(stopping(read_trees(worse, partial=True)))
    few = [*job(1, 0.1), *job(2, 0.1, stopped=None), *job(3, 0.1, held_out=None)]
    (words,) = stopping(read_trees(few, partial=True))
    assert words.startswith("2 training jobs with held-out losses are on record, of 3 nodes of weights; in 1 of them")
    assert "not been measured" in variance(read_trees(few, partial=True))[0]
    sampled = job(4, 0.1, variance={"among_prompts": 0.02, "among_replies": 0.01})
    assert variance(read_trees(sampled, partial=True))[-1] == "| t4 | lora | 0.0200 | 0.0100 | +0.600 |"
