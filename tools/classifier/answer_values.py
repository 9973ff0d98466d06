"""Answers in another notation than the reference: a date, a number in words, the values of a JSON object.

How a value is written is form. Without this module, "July 4, 2010" for 2010-07-04 would lack content, since neither
text contains the other.
"""

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
_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL, _TENS = _TO_NINETEEN.split(), _TENS_NAMES.split()
IN_WORDS = {word: number for number, word in enumerate(_SMALL)} | {
    f"{tens}-{_SMALL[ones]}" if ones else tens: 10 * ten + ones
    for ten, tens in enumerate(_TENS, 2)
    for ones in range(10)
}
NUMBER_WORD = re.compile(rf"(?i)(?<![\w-])(?:(?:{'|'.join(_TENS)})[- ](?:{'|'.join(_SMALL[1:10])})|[A-Za-z]+)(?![\w-])")
# Beside these words a number is part of another: "two hundred", "one hundred and five", "minus five", "two thirds".
_SCALES = "hundreds?|thousands?|millions?|billions?|dozens?|scores?"
BEFORE = re.compile(rf"(?i)(?:\b(?:minus|negative|point|{_SCALES})(?:[\s-]+and)?|[-\u2212])[\s-]*\Z")
BEHIND = re.compile(rf"(?i)[\s-]*(?:{_SCALES}|point|hal(?:f|ves)|thirds?|quarters?|fifths?|sixths?|eighths?|tenths?)\b")
LONGEST_DIGITS = 30  # Python refuses to read numbers of thousands of digits
PRONOUN = "one"  # "one of them"; a number only if it is the whole reply


def find_value(reply: str, core: str) -> Span | None:
    """Find where the reply states the core in another notation.

    A reply with another date or number beside the right one states neither. "05/01/2024" may be read either way. The
    values of a JSON object may stand anywhere in the reply, in any order.

    Returns:
        The place, or None if the reply does not state the core or contains it literally.
    """
    if find_bounded(reply.lower(), core.lower()) is not None:
        return None
    if DATE.fullmatch(core):
        wanted, dates = _dates_of(core), list(DATE.finditer(reply))
        right = dates and all(_dates_of(each.group()) & wanted for each in dates)
        return Span(*dates[-1].span()) if right else None
    if (number := _number_of(core)) is not None:
        numbers = _numbers(reply)
        return numbers[-1][1] if numbers and all(value == number for value, _ in numbers) else None
    leaves = leaves_of(core)
    if leaves and all(states(reply, leaf) for leaf in leaves) and not _other_data(reply, core):
        return Span(0, len(reply)).trimmed(reply)
    return None


def written_otherwise(text: str, core: str) -> bool:
    """Say whether a text is a date, a number or data in another notation than the core.

    Putting the core in its place would then change the form too.
    """
    text = text.strip()
    if leaves_of(core):
        return len(WORD.findall(text)) > 1 and text[:1] != core[:1]
    if DATE.fullmatch(text) and DATE.fullmatch(core):
        return _notation(text) != _notation(core)
    return _number_of(text) is not None and _number_of(core) is not None and text.isdecimal() != core.isdecimal()


def leaves_of(core: str) -> list[str]:
    """The texts and numbers in a JSON object or list; [] if the text is neither, or if it holds other values too."""
    if core[:1] not in ("{", "["):
        return []
    try:
        leaves = list(_walked(json.loads(core)))
    except (ValueError, RecursionError):
        return []
    plain = all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in leaves)
    return [str(each) for each in leaves] if plain and all(str(each).strip() for each in leaves) else []


def _other_data(reply: str, core: str) -> bool:
    """Say whether the reply is JSON too, with the values in other places; names of fields may differ."""
    if not leaves_of(reply.strip()):
        return False
    given, wanted = json.loads(reply), json.loads(core)
    if isinstance(given, dict) and isinstance(wanted, dict):
        given, wanted = ({str(name).casefold(): value for name, value in each.items()} for each in (given, wanted))
        if given.keys() == wanted.keys():
            return any(_texts(given[name]) != _texts(wanted[name]) for name in wanted)
    return _texts(given) != _texts(wanted)


def _texts(value: Any) -> list[str]:
    return [str(each) for each in _walked(value)]


def _walked(value: Any) -> Iterator[Any]:
    """Values of nested objects and lists, from first to last."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _walked(each)
    else:
        yield value


def _notation(text: str) -> str:
    """The notation of a date: each digit as 0, each word as a."""
    return re.sub(r"[A-Za-z]+", "a", re.sub(r"\d", "0", text))


def _number_of(text: str) -> int | None:
    """The number that a text is, in digits or words; None if it is no number, or one of more than LONGEST_DIGITS."""
    if text.isdecimal():
        return int(text) if len(text) <= LONGEST_DIGITS else None
    return IN_WORDS.get(text.lower().replace(" ", "-"))


def _dates_of(text: str) -> set[date]:
    """The days that a text may mean, month first or day first; empty if it names no whole date."""
    from dateutil.parser import parse

    found = set()
    for day_first in (False, True):
        try:
            one, other = (parse(text, default=datetime(year, 1, 1), dayfirst=day_first) for year in (1904, 1908))
        except (ValueError, OverflowError):
            continue
        if one == other:  # else the text has no year
            found.add(one.date())
    return found


def _numbers(reply: str) -> list[tuple[int | None, Span]]:
    """The numbers of a reply, in words or digits, and where they stand; None for a number that is not whole."""
    alone = len(WORD.findall(reply)) == 1
    found: list[tuple[int | None, Span]] = []
    for each in (*NUMBER_WORD.finditer(reply), *NUMBER.finditer(reply)):
        text, number = each.group(), _number_of(each.group().rstrip(".,"))
        if text[:1].isalpha() and (number is None or (text.lower() == PRONOUN and not alone)):
            continue
        part = BEFORE.search(reply[: each.start()]) or BEHIND.match(reply, each.end())
        found.append((None if part else number, Span(*each.span())))
    return found
