"""Scores: what a reply earned, check by check, with words about what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nslora.tools.schema import Example


@dataclass(frozen=True)
class Score:
    """What a reply earned: value in [0, 1] from the checks (name -> [0, 1]); feedback is "" at full reward.

    suggestion is a reply that earns full reward on this row (verified), None where none is known.
    """

    value: float
    checks: Mapping[str, float]
    feedback: str
    suggestion: str | None = None

    @property
    def passed(self) -> bool:
        """Every check is at 1; this is what `all_checks` counts."""
        return all(value >= 1.0 for value in self.checks.values())


@dataclass(frozen=True)
class Graded:
    """One reply with its score."""

    example: Example
    reply: str
    score: Score


def check_means(scored: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each check over the rows that have it: a user's function may name other parts for each row."""
    names = dict.fromkeys(name for checks in scored for name in checks)
    values = {name: [checks[name] for checks in scored if name in checks] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
