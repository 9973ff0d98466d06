"""Tables of bench_editor and bench_rates, from records."""

from typing import Any

import bench_editor
import bench_rates
import pytest


def record(editor: str, sample: int, *rewards: float) -> dict[str, Any]:
    values = {str(i): value for i, value in enumerate(rewards)}
    cell = {"task": "banking12", "policy": bench_editor.EMBEDDED, "editor": editor, "sample": sample}
    spent = {"calls": 1, "replies": 1, "input_tokens": 900, "output_tokens": 100, "seconds": 9.0, "added_tokens": 50.0}
    return {**cell, "rewards": values, "usable": 1, **spent}


def test_editors_are_compared_question_by_question_on_the_samples_that_both_have() -> None:
    ours = [record(bench_editor.REFLECT, 0, 1, 1, 0, 1), record(bench_editor.REFLECT, 1, 0, 0, 0, 0)]
    rules = [record(bench_editor.RULES, 0, 0, 1, 0, 0)]
    gain, low, high = bench_editor.difference(ours, rules)
    assert gain == pytest.approx(0.5)
    assert low <= gain <= high
    lines = bench_editor.table([*ours, *rules])
    assert len(lines) == 4
    assert "| 1.5B, reflect | 2 | 0.375 | +0.500 |" in lines[3]
    names = [each.name for each in bench_editor.figures([*ours, *rules])]
    assert names[0].startswith("usable replies")
    assert any("less rules" in name for name in names)


def test_a_rate_is_chosen_on_one_seed_and_compared_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def rewards(setting: str, seed: int) -> dict[str, float]:
        chosen = float(setting in ("1e-3", "16 epochs"))
        if seed == bench_rates.CHOOSING:
            return {"a": chosen, "b": chosen}
        return {"a": float(setting != "1e-3"), "b": 1.0}

    model = bench_rates.EMBEDDED
    cells = [cell for cell in bench_rates.cells() if (cell.model, cell.task) == (model, "banking12")]
    monkeypatch.setattr(
        bench_rates, "finished", lambda: {cell: {"rewards": rewards(cell.setting, cell.seed)} for cell in cells}
    )
    lines, figures = bench_rates.compared()
    assert len(lines) == 4
    assert "rate: 1e-3 | +0.500 |" in lines[2]
    assert "epochs: 16 epochs | +0.000 | [+0.000, +0.000] |" in lines[3]
    assert [figure.holds for figure in figures] == [True, True]
