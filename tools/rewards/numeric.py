"""The numeric check: plain numbers by themselves, fractions and LaTeX through math-verify.

Of several numbers the one counts that a reply marks as its answer ("#### 18", "the answer is 18"), else the last.
"""

from __future__ import annotations

import decimal
import re
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import Field

from nslora.tools.prompt import MINUS
from nslora.tools.rewards.checks import RIGHT, CheckResult, FieldCheck
from nslora.tools.rewards.math_worker import is_number, same_expression

if TYPE_CHECKING:
    from nslora.tools.schema import Example

# Thousands may be parted by commas; a number does not begin inside a word or another number.
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
# "**18**" and "_18_" are 18 in bold and in italics; "9*2*3" and "a_b_c" are neither.
_EMPHASIS = re.compile(r"(?<![\w*_\\])(\*{1,3}|_{1,3})(?=\S)(.{1,400}?)(?<=\S)\1(?![\w*])")
_PARTED = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")  # thousands, by spaces that stay with them
_ANSWER = re.compile(r"(?i)(?:####|\banswer(?:\s+is|\s*:|\s*=)+)\s*((?:[-+$€£\\]|\.?\d).*?)(?=[.;]\s|\s[(\[]|\n|\Z)")
_ENOUGH = decimal.Context(prec=1000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])  # digits to subtract in
ROUNDING = Decimal("1e-12")  # of a float that was printed, as a share of it
_ARITHMETIC = re.compile(r"[\\/^*=%×÷]|\bsqrt\b|\bpi\b")
# Powers of powers, large exponents and factorials of large numbers: `9^9^9^9` would keep sympy busy until it is killed.
_TOWER = re.compile(r"(?:\^|\*\*)[\s{(]*[-\d.]+[\s})]*(?:\^|\*\*)|(?:\^|\*\*)[\s{(]*-?\d{4,}|\d{4,}\s*!|!\s*!")


class Numeric(FieldCheck):
    """The reply's number is the row's, within `tolerance` (absolute). A sum that is left to be worked out is none."""

    tolerance: float = Field(1e-6, ge=0, allow_inf_nan=False)

    def grade(self, example: Example, reply: str) -> CheckResult:
        if any(same_number(text, reply, self.tolerance) for text in self.texts(example)):
            return RIGHT
        return CheckResult(0.0, self.words("should give the number", example))

    def mend(self, example: Example, reply: str) -> str:
        return reply if self.grade(example, reply).value == 1 else self.texts(example)[0]

    def problem(self, example: Example) -> str | None:
        missing = super().problem(example)
        if missing:
            return missing
        for text in self.texts(example):
            plain = plain_text(text)
            if answer_of(plain) is None and (_TOWER.search(plain) or not is_number(plain)):
                return f"the check {self.name!r} needs a number in the field {self.field!r}, but it holds {text[:80]!r}"
        return None


def plain_number(text: str) -> Decimal | None:
    """The number of a text that holds exactly one and no arithmetic; None for any other text."""
    found = _NUMBER.findall(text)
    if len(found) != 1 or _ARITHMETIC.search(text):
        return None
    with decimal.localcontext(_ENOUGH):
        return Decimal(found[0].replace(",", ""))


def plain_text(text: str) -> str:
    """The text without emphasis, and with numbers as a keyboard writes them."""
    return _PARTED.sub("", _EMPHASIS.sub(r"\2", text.translate(MINUS)))


def answer_of(text: str) -> Decimal | None:
    """The plain number that a text marks as its answer, or that is its only one; None for any other text."""
    marked = _ANSWER.findall(text)
    number = plain_number(marked[-1]) if marked else None
    return plain_number(text) if number is None else number


def same_number(expected: str, reply: str, tolerance: float) -> bool:
    """Whether two texts give the same number within the absolute tolerance; a float may differ in its last digits."""
    expected, reply = plain_text(expected), plain_text(reply)
    left, right = answer_of(expected), answer_of(reply)
    if left is not None and right is not None:
        with decimal.localcontext(_ENOUGH):
            whole = left == left.to_integral_value() and right == right.to_integral_value()
            rounding = 0 if whole else ROUNDING * max(abs(left), abs(right))
            return bool(abs(left - right) <= Decimal(repr(tolerance)) + rounding)
    return not _TOWER.search(expected) and not _TOWER.search(reply) and same_expression(expected, reply, tolerance)
