"""Scores of replies: total, per check, and feedback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nslora.tools.schema import Example


@dataclass(frozen=True)
class Score:
    """The score of one reply.

    Attributes:
        value: Total, in [0, 1].
        checks: Check name -> value in [0, 1].
        feedback: What is wrong; "" at full reward.
        suggestion: A reply that earns full reward on this row (verified); None if none is known.
    """

    value: float
    checks: Mapping[str, float]
    feedback: str
    suggestion: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every check is at 1; `all_checks` counts these."""
        return all(value >= 1.0 for value in self.checks.values())


@dataclass(frozen=True)
class Graded:
    """A row, a reply to it and the score. thinking: what the reply begins with; it earns nothing."""

    example: Example
    reply: str
    score: Score
    thinking: str = ""


def check_means(scored: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each check over the rows that have it, because a user's function may name different parts per row."""
    names = dict.fromkeys(name for checks in scored for name in checks)
    values = {name: [checks[name] for checks in scored if name in checks] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
