"""The numeric check: compares plain numbers with `decimal`, fractions and LaTeX with math-verify.

`number_text` finds the number of a text. A text with a date, a range, a choice or a comparison in its place earns 0.
"""

from __future__ import annotations

import decimal
import re
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import Field

from nslora.tools.rewards.checks import FieldCheck
from nslora.tools.rewards.math_worker import is_number, same_expression
from nslora.tools.rewards.number_text import ENOUGH, Expression, Reading, read_number

if TYPE_CHECKING:
    pass

_PER_CENT = re.compile(r"[^\d.^\\/*]*?(-?\d+(?:\.\d+)?)\s*\\?%[^\d^\\/*]*")
_ROUNDING = Decimal("1e-12")  # relative error of a printed float
# Powers of powers, large exponents and factorials of large numbers: sympy would compute `9^9^9^9` until it is killed.
_TOWER = re.compile(r"(?:\^|\*\*)[\s{(]*[-\d.]+[\s})]*(?:\^|\*\*)|(?:\^|\*\*)[\s{(]*-?\d{4,}|\d{4,}\s*!|!\s*!")


class Numeric(FieldCheck):
    """The reply's number equals the row's within `tolerance` (absolute).

    Unevaluated arithmetic does not count. "50%" equals 0.5, and 50, because questions ask for a percentage in either
    way. A known unit is compared with a known unit alone: 42 equals "42 km", and "42 km" is not "42 m". English
    words are read if the text has no digits and one number ("forty-two").
    """

    revision = 2  # one number of the whole text, without comparisons and negations
    must = "give the number"
    tolerance: float = Field(1e-6, ge=0, allow_inf_nan=False)

    def matches(self, text: str, reply: str) -> bool:
        return same_number(text, reply, self.tolerance)

    def unfit(self, text: str) -> str | None:
        number = read_number(text).number
        if isinstance(number, Decimal) or (number is not None and _is_expression(number)):
            return None
        return (
            f"the check {self.name!r} needs a number in the field {self.field!r}, but found {text[:80]!r} "
            "(a date, a range, a choice or a comparison is none): give one number, or use another check"
        )


def _is_expression(number: Expression) -> bool:
    return not _TOWER.search(number.text) and is_number(number.text)


def _close(left: Decimal, right: Decimal, tolerance: float) -> bool:
    with decimal.localcontext(ENOUGH):
        whole = left == left.to_integral_value() and right == right.to_integral_value()
        rounding = 0 if whole else _ROUNDING * max(abs(left), abs(right))
        return bool(abs(left - right) <= Decimal(repr(tolerance)) + rounding)


def _per_cent(reading: Reading) -> Decimal | None:
    """The percentage, 12.5 for "12.5%", if it is the only number of its text."""
    if not isinstance(reading.number, Expression) or reading.unit != "%":
        return None
    only = _PER_CENT.fullmatch(reading.number.text)
    return Decimal(only[1]) if only else None


def same_number(expected: str, reply: str, tolerance: float) -> bool:
    """Whether two texts give the same number. False if one gives none, or if each has a known unit and they differ.

    Args:
        expected: The reference.
        reply: The reply.
        tolerance: Largest absolute difference. Non-integers may also differ by 1e-12 of their size (float rounding).

    Raises:
        RewardError: If math-verify is needed and its process does not start.
    """
    wanted, given = read_number(expected), read_number(reply)
    left, right = wanted.number, given.number
    if left is None or right is None or (wanted.unit and given.unit and wanted.unit != given.unit):
        return False
    if isinstance(left, Decimal) and isinstance(right, Decimal):
        return _close(left, right, tolerance)
    ours, theirs = _per_cent(wanted), _per_cent(given)
    if ours is not None and theirs is not None:
        return _close(ours, theirs, tolerance)
    for part, other in ((ours, right), (theirs, left)):  # math-verify takes "25%" for 25, but not "12.5%" for 12.5
        if part is not None and isinstance(other, Decimal):
            return _close(part, other, tolerance) or _close(part / 100, other, tolerance)
    texts = [each.text if isinstance(each, Expression) else f"{each:f}" for each in (left, right)]
    return not any(map(_TOWER.search, texts)) and same_expression(texts[0], texts[1], tolerance)
