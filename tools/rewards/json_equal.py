"""The json_equal check: compares JSON by value, with a share of the reward for each right key."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nslora.tools.rewards.checks import CheckResult, FieldCheck

if TYPE_CHECKING:
    from nslora.tools.schema import Example


class JsonEqual(FieldCheck):
    """The reply is JSON with the values of the text, whatever the order of keys and the white space.

    An object earns the share of key/value pairs that are right, of all pairs in either object (`partial: false`: 1 if
    all are, else 0). Nested objects count by their own pairs; a list is one value, and its order counts. Numbers
    compare by value (1 is 1.0, not true). A reply may stand in a code fence; other text around it earns 0.
    """

    must = "be JSON equal to"
    partial: bool = True

    def texts(self, example: Example) -> list[str]:
        value = example.fields.get(self.field)
        return [json.dumps(value, ensure_ascii=False)] if isinstance(value, Mapping) else super().texts(example)

    def unfit(self, text: str) -> str | None:
        try:
            parsed(text)
        except (ValueError, RecursionError) as error:
            return f"the check {self.name!r} needs JSON in the field {self.field!r}, but found {text[:80]!r} ({error})"
        return None

    def matches(self, text: str, reply: str) -> bool:
        return self._share(text, reply)[0] == 1

    def grade(self, example: Example, reply: str) -> CheckResult:
        value, wrong = max((self._share(text, reply) for text in self.texts(example)), key=lambda pair: pair[0])
        if value == 1:
            return CheckResult(1.0)
        keys = f" Keys to put right, add or leave out: {', '.join(wrong)}." if wrong else ""
        return CheckResult(value if self.partial else 0.0, f"{self.fault(example, reply)}{keys}")

    def _share(self, text: str, reply: str) -> tuple[float, list[str]]:
        """Give the share of right pairs, and the keys of the others."""
        try:
            wanted, given = parsed(text), parsed(reply)
        except (ValueError, RecursionError):
            return 0.0, []
        if not isinstance(wanted, dict) or not isinstance(given, dict):
            return float(_same(wanted, given)), []
        pairs, theirs = _pairs(wanted), _pairs(given)
        keys = list(dict.fromkeys([*pairs, *theirs]))
        wrong = [key for key in keys if key not in pairs or key not in theirs or not _same(pairs[key], theirs[key])]
        return (len(keys) - len(wrong)) / len(keys), [".".join(key) or "{}" for key in wrong]


def parsed(text: str) -> Any:
    """Parse one JSON value, in a code fence or without. Raises ValueError, also for NaN and for a key given twice."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL | re.IGNORECASE)
    return json.loads(fenced.group(1) if fenced else text, parse_constant=_no_number, object_pairs_hook=_once)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {unicodedata.normalize("NFC", key): value for key, value in pairs}
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _pairs(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Map the path of each value that is not an object with keys to the value."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {key: part for name, inner in value.items() for key, part in _pairs(inner, (*path, name)).items()}


def _same(wanted: Any, given: Any) -> bool:
    """Whether two JSON values are equal. In Python, True equals 1 and "é" may differ from itself."""
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    if isinstance(wanted, str) and isinstance(given, str):
        return unicodedata.normalize("NFC", wanted) == unicodedata.normalize("NFC", given)
    if isinstance(wanted, list) and isinstance(given, list):
        return len(wanted) == len(given) and all(map(_same, wanted, given))
    if isinstance(wanted, dict) and isinstance(given, dict):
        return wanted.keys() == given.keys() and all(_same(wanted[key], given[key]) for key in wanted)
    return bool(wanted == given)
