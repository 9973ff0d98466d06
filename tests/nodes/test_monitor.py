"""Keep or drop, and the final choice."""

import random
from types import SimpleNamespace
from typing import Any

from nslora.nodes.monitor import final_choice
from nslora.tools.evaluation.acceptance import KeepSettings, keep_or_drop


def test_the_rule_that_the_records_are_checked_with_is_the_one_of_the_statistics() -> None:
    assert keep_or_drop([0.0] * 8, [1.0] * 8).kept
    assert not keep_or_drop([0.5] * 8, [0.5] * 8).kept


def test_the_final_choice_is_made_anew_after_each_look() -> None:
    start: Any = {"key": "start", "reward": 0.5}
    state: Any = {"start": {"adapter": None, "prompt": "p"}, "start_measured": start}
    lucky, better = [1.0] * 5 + [0.0] * 25, [1.0] * 9 + [0.0] * 21
    draw = random.Random(0)
    flips = [draw.sample([1.0] * 15 + [-1.0] * 15, 30) for _ in range(5)]

    def chosen(*gains: list[float], anchor_gain: float = 0.0) -> str | None:
        workspace: Any = SimpleNamespace(
            settings=SimpleNamespace(keep=KeepSettings()),
            evaluations=SimpleNamespace(gains=lambda key, over: gains[int(key)]),
        )
        rounds: Any = [
            {
                "evaluation": str(i),
                "candidate": {"adapter": f"a{i}", "prompt": "p"},
                "numbers": {"anchor_gain": anchor_gain},
                "reward_after": 0.5 + sum(gain) / 30,
            }
            for i, gain in enumerate(gains)
        ]
        return final_choice(state, rounds, workspace)["best"]["adapter"]

    assert chosen(lucky) == "a0"
    assert chosen(lucky, *flips) is None  # five rows won are no longer much, of six candidates
    assert chosen(lucky, *flips, better) == "a6"
    assert chosen(better, lucky) == "a0"
    assert chosen(better, anchor_gain=-0.1) is None
    assert final_choice(state, [], SimpleNamespace(settings=SimpleNamespace(keep=KeepSettings()))) == {}  # type: ignore[arg-type]
