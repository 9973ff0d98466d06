"""Keep or drop, the signal, the reason to stop, and the final choice."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_runs import BULLETS, ONCE
from states import after_start, measured, proposal, record, state, workspace

from nslora.nodes.evaluate import step as evaluate
from nslora.nodes.monitor import final_choice, step, stop_reason
from nslora.tools.evaluation.acceptance import KeepSettings, keep_or_drop
from nslora.tools.prompt import Prompt
from nslora.tools.router.monitoring_signal import progress_of
from nslora.tools.schema import KINDS
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.settings import RunSettings


def test_the_rule_that_the_records_are_checked_with_is_the_one_of_the_statistics() -> None:
    assert keep_or_drop([0.0] * 8, [1.0] * 8).kept
    assert not keep_or_drop([0.5] * 8, [0.5] * 8).kept


def test_the_start_is_kept_and_both_kinds_are_open(tmp_path: Path, task: Task) -> None:
    begun = after_start(workspace(tmp_path, task))
    assert begun["start_measured"] == begun["kept_measured"]
    assert begun["stop"] == ""
    assert {kind: begun["signal"][kind]["value"] for kind in KINDS} == dict.fromkeys(KINDS, 1.0)


@pytest.mark.parametrize(("prompt", "kept"), [(BULLETS, True), (ONCE, False)])
def test_a_candidate_is_kept_only_if_it_beats_the_one_in_force(
    tmp_path: Path, task: Task, prompt: Prompt, kept: bool
) -> None:
    room = workspace(tmp_path, task)
    begun = after_start(room)
    room.prompts.add(prompt)
    waiting = state(**{**begun, "proposal": proposal(prompt, new_rows=3)})
    changes = step(state(**{**waiting, **evaluate(waiting, room)}), room)
    (round_record,) = changes["rounds"]
    assert round_record["kept"] is kept
    assert ("kept" in changes) is kept
    assert changes["best"]["prompt"] == (prompt.hash if kept else begun["start"]["prompt"])
    assert round_record["signal"] == changes["signal"] != begun["signal"]
    assert (round_record["wall_s"], round_record["flop"]) >= (2.0, 100.0)  # of the update, and its evaluation
    assert changes["remade"] == {"prompt": prompt.hash, "rows": 3, "waiting": True}
    assert changes["stop"].startswith("target reached") is kept


def test_an_update_that_failed_is_a_round_without_a_measurement(tmp_path: Path, task: Task) -> None:
    room = workspace(tmp_path, task, max_rounds=1)
    begun = after_start(room)
    changes = step(state(**{**begun, "proposal": proposal(), "measured": None}), room)
    (round_record,) = changes["rounds"]
    assert (round_record["error"], round_record["kept"]) == ("no usable prompt", False)
    assert "kept" not in changes
    assert changes["stop"] == "round limit of 1 reached"


def test_nothing_to_judge_changes_nothing(tmp_path: Path, task: Task) -> None:
    assert step(state(), workspace(tmp_path, task)) == {}


@pytest.mark.parametrize(
    ("values", "rounds", "rounds_done", "reason"),
    [
        ({}, [], 0, ""),
        ({"reward": 1.0, "failures": 0}, [], 0, "target reached: validation reward 1.000, wanted 0.950"),
        ({"reward": 0.9, "failures": 0}, [], 0, "no failure is left on validation (reward 0.900)"),
        # 2**-4 <= 0.1 and 2**-5 <= 0.05: four rows won show a gain, five show one over the start.
        ({"failures": 4}, [], 0, "too few failures are left on validation: 4, .* 5 rows (level 0.05)"),
        ({"failures": 4}, [record(kept=True)], 1, ""),
        ({"failures": 3}, [record(kept=True)], 1, "too few failures are left on validation: 3, .* 4 rows (level 0.1)"),
        ({"failures": 4}, [record()], 1, "too few failures are left on validation: 4, .* 5 rows (level 0.05)"),
        ({}, [record()] * 3, 3, "round limit of 3 reached"),
        ({"reward": 0.99}, [record()] * 3, 3, "target reached: validation reward 0.990, wanted 0.950"),
    ],
)
def test_table_of_reasons_to_stop(values: Any, rounds: Any, rounds_done: int, reason: str) -> None:
    said = stop_reason(measured(**values), rounds, rounds_done, RunSettings(target=0.95, max_rounds=3))
    begin, _, end = reason.partition(" .* ")
    assert said.startswith(begin)
    assert said.endswith(end or begin)


def test_the_final_choice_is_made_anew_after_each_look() -> None:
    begun: Any = state(start_measured=measured(key="start", reward=0.5))
    lucky, better = [1.0] * 5 + [0.0] * 25, [1.0] * 9 + [0.0] * 21
    draw = random.Random(0)
    flips = [draw.sample([1.0] * 15 + [-1.0] * 15, 30) for _ in range(5)]

    def chosen(*gains: list[float], anchor_gain: float = 0.0) -> str | None:
        room: Any = SimpleNamespace(
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
        adapter: str | None = final_choice(begun, rounds, room)["best"]["adapter"]
        return adapter

    assert chosen(lucky) == "a0"
    assert chosen(lucky, *flips) is None  # five rows won are no longer much, of six candidates
    assert chosen(lucky, *flips, better) == "a6"
    assert chosen(better, lucky) == "a0"
    assert chosen(better, anchor_gain=-0.1) is None
    assert final_choice(begun, [], SimpleNamespace(settings=SimpleNamespace(keep=KeepSettings()))) == {}  # type: ignore[arg-type]


def test_the_signal_in_the_state_is_the_one_that_the_updates_say(tmp_path: Path, task: Task) -> None:
    signal = after_start(workspace(tmp_path, task))["signal"]
    assert all(signal[kind]["saturated"] == float(progress_of(kind, []).saturated) for kind in KINDS)
