"""The numeric check: compares plain numbers with `decimal`, fractions and LaTeX with math-verify.

If a reply holds several numbers, the one marked as the answer counts ("#### 18", "the answer is 18"), else the last.
"""

from __future__ import annotations

import decimal
import re
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import Field

from nslora.tools.prompt import MINUS
from nslora.tools.rewards.checks import FieldCheck
from nslora.tools.rewards.math_worker import is_number, same_expression

if TYPE_CHECKING:
    from nslora.tools.schema import Example

# Commas may separate thousands; a number does not begin inside a word or another number.
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
# "**18**" and "_18_" are 18 in bold and in italics; "9*2*3" and "a_b_c" have no emphasis.
_EMPHASIS = re.compile(r"(?<![\w*_\\])(\*{1,3}|_{1,3})(?=\S)(.{1,400}?)(?<=\S)\1(?![\w*])")
_THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")  # non-breaking spaces between thousands
_ANSWER = re.compile(r"(?i)(?:####|\banswer(?:\s+is|\s*:|\s*=)+)\s*((?:[-+$€£\\]|\.?\d).*?)(?=[.;]\s|\s[(\[]|\n|\Z)")
_ENOUGH = decimal.Context(
    prec=1000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[]
)  # enough digits to subtract any two answers
_ROUNDING = Decimal("1e-12")  # relative error of a printed float
_ARITHMETIC = re.compile(r"[\\/^*=%×÷]|\bsqrt\b|\bpi\b")
# Powers of powers, large exponents and factorials of large numbers: sympy would compute `9^9^9^9` until it is killed.
_TOWER = re.compile(r"(?:\^|\*\*)[\s{(]*[-\d.]+[\s})]*(?:\^|\*\*)|(?:\^|\*\*)[\s{(]*-?\d{4,}|\d{4,}\s*!|!\s*!")


class Numeric(FieldCheck):
    """The reply's number equals the row's within `tolerance` (absolute). Unevaluated arithmetic does not count."""

    verb = "should give the number"
    tolerance: float = Field(1e-6, ge=0, allow_inf_nan=False)

    def matches(self, text: str, reply: str) -> bool:
        return same_number(text, reply, self.tolerance)

    def problem(self, example: Example) -> str | None:
        if missing := super().problem(example):
            return missing
        for text in self.texts(example):
            plain = _plain_text(text)
            if _answer_of(plain) is None and (_TOWER.search(plain) or not is_number(plain)):
                return f"the check {self.name!r} needs a number in the field {self.field!r}, but found {text[:80]!r}"
        return None


def plain_number(text: str) -> Decimal | None:
    """Read the number of a text with exactly one number and no arithmetic; None for any other text."""
    found = _NUMBER.findall(text)
    if len(found) != 1 or _ARITHMETIC.search(text):
        return None
    with decimal.localcontext(_ENOUGH):
        return Decimal(found[0].replace(",", ""))


def _plain_text(text: str) -> str:
    """Remove emphasis, typographic minus signs and spaces between thousands."""
    return _THOUSANDS.sub("", _EMPHASIS.sub(r"\2", text.translate(MINUS)))


def _answer_of(text: str) -> Decimal | None:
    """Read the number that a text marks as its answer, or its only number; None for any other text."""
    marked = _ANSWER.findall(text)
    number = plain_number(marked[-1]) if marked else None
    return plain_number(text) if number is None else number


def same_number(expected: str, reply: str, tolerance: float) -> bool:
    """Whether two texts give the same number.

    Args:
        expected: The reference.
        reply: The reply.
        tolerance: Largest absolute difference. Non-integers may also differ by 1e-12 of their size (float rounding).

    Raises:
        RewardError: If math-verify is needed and its process does not start.
    """
    expected, reply = _plain_text(expected), _plain_text(reply)
    left, right = _answer_of(expected), _answer_of(reply)
    if left is not None and right is not None:
        with decimal.localcontext(_ENOUGH):
            whole = left == left.to_integral_value() and right == right.to_integral_value()
            rounding = 0 if whole else _ROUNDING * max(abs(left), abs(right))
            return bool(abs(left - right) <= Decimal(repr(tolerance)) + rounding)
    return not _TOWER.search(expected) and not _TOWER.search(reply) and same_expression(expected, reply, tolerance)
