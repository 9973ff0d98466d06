"""What bench-scale keeps, and what the simulation makes of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scale_simulation import FIGURES, RECORD, Constants, constants, recorded, simulated

KNOWN = Constants(reply_ms=5.0, round_s=0.1, replies=20, round_kb=100.0, adapter_mb=3.0, peak_mb=500.0)


def test_the_simulation_saturates_where_arithmetic_says() -> None:
    """One core makes 200 replies a second of 5 ms; engines that are slower than that are the limit."""
    alike = {"engines": 2, "runs": 16, "cores": 1}
    busy = simulated(replace(KNOWN, round_s=0.0), rate=10_000, **alike)
    assert busy["cores"] > 0.98
    assert busy["replies"] == pytest.approx(200, rel=0.02)
    waiting = simulated(replace(KNOWN, round_s=0.0, replies=200), rate=20, **alike)
    assert waiting["cores"] < 0.25
    assert waiting["replies"] == pytest.approx(40, rel=0.1)
    alone = simulated(KNOWN, engines=1, runs=1, cores=4, rate=64)  # a reply takes a second; a run computes on one core
    assert alone["replies"] == pytest.approx(20 / (20 * 0.005 + 1 + 0.1), rel=0.05)


def test_constants_come_from_the_record_and_none_may_be_missing(tmp_path: Path) -> None:
    path, names = tmp_path / "scale.jsonl", list(FIGURES.values())
    parts = [[{"name": name, "value": 1.0} for name in names], [{"name": names[0], "value": 2.0}]]
    path.write_text("".join(json.dumps({"part": "x", "figures": part}) + "\n" for part in parts))
    assert constants(recorded(path)).reply_ms == 2.0  # the later line counts
    assert constants(recorded(path)).peak_mb == 1.0
    for name in names:
        with pytest.raises(KeyError, match="make bench-scale"):
            constants({key: 1.0 for key in names if key != name})
    with pytest.raises(KeyError, match="has no figure"):
        constants(recorded(tmp_path / "nothing.jsonl"))
    if RECORD.exists():
        constants(recorded())
