"""The rules by which a run ends before anything is chosen."""

from typing import Any

import pytest

from nslora.tools.router.reasons import why_stop

GOES_ON = {"reward": 0.5, "target": 0.9, "failures": 5, "rounds_done": 1, "max_rounds": 3}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"reward": 0.9}, "target reached: validation reward 0.900, wanted 0.900"),
        ({"failures": 0}, "no failure is left on validation (reward 0.500)"),
        ({"fewest_failures": 5, "level": 0.05}, ""),
        (
            {"fewest_failures": 6, "level": 0.05},
            "too few failures are left on validation: 5, and the test of a gain needs 6 rows (level 0.05)",
        ),
        ({"rounds_done": 3}, "round limit of 3 reached"),
        ({"rounds_done": 4}, "round limit of 3 reached"),
    ],
)
def test_table_of_why_stop(changes: dict[str, Any], reason: str) -> None:
    assert why_stop(**{**GOES_ON, **changes}) == reason
