"""Where a reply states the reference in another writing: a date, a number in words, the values of a JSON object.

How a value is written is form. Without this, "July 4, 2010" for 2010-07-04 would lack content, since neither holds the
other's characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from nslora.tools.classifier.answer_core import NUMBER, WORD
from nslora.tools.classifier.layouts import Span, find_bounded, states

_MONTH, _DAY = r"[A-Za-z]{3,9}\.?", r"\d{1,2}(?:st|nd|rd|th)?"
DATE = re.compile(
    rf"(?<!\w)(?:\d{{1,4}}([-/.])\d{{1,2}}\1\d{{1,4}}|{_DAY}(?: of)? {_MONTH},? \d{{4}}"
    rf"|{_MONTH} {_DAY},? \d{{4}}|\d{{4}},? {_MONTH} {_DAY})(?!\w)"
)
_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
IN_WORDS = {word: number for number, word in enumerate(_SMALL)} | {
    f"{tens}{'-' * bool(ones)}{_SMALL[ones] if ones else ''}": 10 * ten + ones
    for ten, tens in enumerate(_TENS, 2)
    for ones in range(10)
}
NUMBER_WORD = re.compile(rf"(?i)(?<![\w-])(?:(?:{'|'.join(_TENS)})[- ](?:{'|'.join(_SMALL[1:10])})|[A-Za-z]+)(?![\w-])")
# Beside these a number is part of another one: "two hundred", "one hundred and five", "minus five", "two thirds".
_SCALES = "hundreds?|thousands?|millions?|billions?|dozens?|scores?"
BEFORE = re.compile(rf"(?i)(?:\b(?:minus|negative|point|{_SCALES})(?:[\s-]+and)?|[-\u2212])[\s-]*\Z")
BEHIND = re.compile(rf"(?i)[\s-]*(?:{_SCALES}|point|hal(?:f|ves)|thirds?|quarters?|fifths?|sixths?|eighths?|tenths?)\b")
LONGEST_DIGITS = 30  # Python reads no number of thousands of digits
PRONOUN = "one"  # "one of them": a number where it is the whole reply


def find_value(reply: str, core: str) -> Span | None:
    """Where the reply states the core in another writing; None where it does not, or where it has its very characters.

    A reply that holds another date or number beside it states neither. Of "05/01/2024" either reading counts. Values of
    a JSON object are looked for in the whole reply, in any order.
    """
    if find_bounded(reply.lower(), core.lower()) is not None:
        return None
    if DATE.fullmatch(core):
        wanted, given = dates_of(core), list(DATE.finditer(reply))
        if not given or not all(dates_of(each.group()) & wanted for each in given):
            return None
        return Span(*given[-1].span())
    if (number := number_of(core)) is not None:
        numbers = _numbers(reply)
        return numbers[-1][1] if numbers and all(value == number for value, _ in numbers) else None
    leaves = leaves_of(core)
    if leaves and all(states(reply, leaf) for leaf in leaves) and not _other_data(reply, core):
        text = reply.strip()
        start = reply.find(text)
        return Span(start, start + len(text))
    return None


def _other_data(reply: str, core: str) -> bool:
    """Whether the reply is JSON data itself, with these values in other places. Names may be written otherwise."""
    if not leaves_of(reply.strip()):
        return False
    given, wanted = json.loads(reply), json.loads(core)
    if isinstance(given, dict) and isinstance(wanted, dict):
        given, wanted = ({str(name).casefold(): value for name, value in each.items()} for each in (given, wanted))
        if given.keys() == wanted.keys():
            return any(list(_texts(given[name])) != list(_texts(wanted[name])) for name in wanted)
    return list(_texts(given)) != list(_texts(wanted))


def _texts(value: Any) -> Iterator[str]:
    return map(str, _walked(value))


def written_otherwise(text: str, core: str) -> bool:
    """Whether a text is a date, a number or data in another writing than the core: the core there mends form too."""
    text = text.strip()
    if leaves_of(core):
        return len(WORD.findall(text)) > 1 and text[:1] != core[:1]
    if DATE.fullmatch(text) and DATE.fullmatch(core):
        return _shape(text) != _shape(core)
    return number_of(text) is not None and number_of(core) is not None and text.isdecimal() != core.isdecimal()


def _shape(text: str) -> str:
    return re.sub(r"[A-Za-z]+", "a", re.sub(r"\d", "0", text))


def number_of(text: str) -> int | None:
    """The number that a text is, in digits or in words; None for one of more digits than answers have."""
    if text.isdecimal():
        return int(text) if len(text) <= LONGEST_DIGITS else None
    return IN_WORDS.get(text.lower().replace(" ", "-"))


def dates_of(text: str) -> set[date]:
    """The days that a text may mean, month first or day first; none where it does not name a whole date."""
    from dateutil.parser import parse

    found = set()
    for day_first in (False, True):
        try:
            one, other = (parse(text, default=datetime(year, 1, 1), dayfirst=day_first) for year in (1904, 1908))
        except (ValueError, OverflowError):
            continue
        if one == other:
            found.add(one.date())
    return found


def _numbers(reply: str) -> list[tuple[int | None, Span]]:
    """Every number of a reply, in words or digits, and where it stands; None as the number of what is no whole one."""
    alone = len(WORD.findall(reply)) == 1
    words = [
        each
        for each in NUMBER_WORD.finditer(reply)
        if number_of(each.group()) is not None and (alone or each.group().lower() != PRONOUN)
    ]
    return [
        (
            None
            if BEFORE.search(reply[: each.start()]) or BEHIND.match(reply, each.end())
            else number_of(each.group().rstrip(".,")),
            Span(*each.span()),
        )
        for each in [*words, *NUMBER.finditer(reply)]
    ]


def leaves_of(core: str) -> list[str]:
    """The texts and numbers of a JSON object or list; none where the text is no such thing, or holds others too."""
    if core[:1] not in ("{", "["):
        return []
    try:
        leaves = list(_walked(json.loads(core)))
    except (ValueError, RecursionError):
        return []
    plain = [each for each in leaves if isinstance(each, str | int | float) and not isinstance(each, bool)]
    return (
        [str(each) for each in plain] if len(plain) == len(leaves) and all(str(each).strip() for each in plain) else []
    )


def _walked(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _walked(each)
    else:
        yield value
