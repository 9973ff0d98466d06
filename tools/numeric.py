"""The numeric check: plain numbers by themselves, fractions and LaTeX through math-verify."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from pydantic import Field

from nslora.tools.checks import RIGHT, FieldCheck, Verdict
from nslora.tools.math_answers import is_number, same_expression
from nslora.tools.prompt import MINUS

if TYPE_CHECKING:
    from nslora.tools.task import Example

# Thousands may be parted by commas; a number does not begin inside a word or another number.
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
_ARITHMETIC = re.compile(r"[\\/^*=%×÷]|\bsqrt\b|\bpi\b")
# Powers of powers, large exponents and factorials of large numbers: `9^9^9^9` would keep sympy busy until it is killed.
_TOWER = re.compile(r"(?:\^|\*\*)[\s{(]*[-\d.]+[\s})]*(?:\^|\*\*)|(?:\^|\*\*)[\s{(]*-?\d{4,}|\d{4,}\s*!|!\s*!")


class Numeric(FieldCheck):
    """The reply's number is the row's, within `tolerance` (absolute)."""

    tolerance: float = Field(1e-6, ge=0, allow_inf_nan=False)

    def grade(self, example: Example, reply: str) -> Verdict:
        if any(same_number(text, reply, self.tolerance) for text in self.texts(example)):
            return RIGHT
        return Verdict(0.0, self.words("should give the number", example))

    def mend(self, example: Example, reply: str) -> str:
        return reply if self.grade(example, reply).value == 1 else self.texts(example)[0]

    def problem(self, example: Example) -> str | None:
        missing = super().problem(example)
        if missing:
            return missing
        for text in self.texts(example):
            if plain_number(text) is None and (_TOWER.search(text) or not is_number(text)):
                return f"the check {self.name!r} needs a number in the field {self.field!r}, but it holds {text[:80]!r}"
        return None


def plain_number(text: str) -> float | None:
    """The number of a text that holds exactly one and no arithmetic; None for any other text."""
    found = _NUMBER.findall(text.translate(MINUS))
    if len(found) != 1 or _ARITHMETIC.search(text):
        return None
    return float(found[0].replace(",", ""))


def same_number(expected: str, reply: str, tolerance: float) -> bool:
    """Whether two texts give the same number within the absolute tolerance."""
    left, right = plain_number(expected), plain_number(reply)
    if left is not None and right is not None:
        return math.isclose(left, right, rel_tol=1e-12, abs_tol=tolerance)
    return not _TOWER.search(expected) and not _TOWER.search(reply) and same_expression(expected, reply, tolerance)
