"""The built-in checks: each gives a value in [0, 1], words about what is wrong, and a mended reply where it can.

A check does not say whether it is about content or form; nothing in the loop may know. Its options are the fields of
its class, so that a wrong option in a task.yaml is refused by name.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from nslora.tools.prompt import MINUS
from nslora.tools.schema import Settings

if TYPE_CHECKING:
    from nslora.tools.schema import Example

REFERENCE = "reference"
# Scripts without spaces between words, or (Hangul) whose words take endings: from Thai to Khmer, kana, Han, Hangul.
_SPACELESS_RANGES = (
    r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f"
    r"\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_SPACELESS = re.compile(f"[{_SPACELESS_RANGES}]")
_NUMERALS = "[〇零一二三四五六七八九十百千万萬亿億]"
_IN_WORDS = rf"[^\W{_SPACELESS_RANGES}]"
_TYPED = MINUS | str.maketrans("‘’ʼ“”", "'''\"\"")
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")
_SIGNED = re.compile(r"(?:^|[^\w)\]])-\Z")  # of a number; in "1910-1911", "B-25" and "(3)-4" it is none
_OPENING, _CLOSING = "\"'“‘([{*", "\"'”’)]}*.,;:!?"


def _beside(end: str) -> str:
    """A pattern for what would go on with a word that begins or ends with this character; empty where nothing would."""
    if re.match(_NUMERALS, end):
        return _NUMERALS  # 三 is none of the numbers in 十三
    return "" if _SPACELESS.match(end) else _IN_WORDS


def composed(text: str) -> str:
    """The text with each letter and its accents as one character, however they came (Unicode NFC)."""
    return unicodedata.normalize("NFC", text)


def typed(text: str) -> str:
    """The text as a keyboard writes it: composed, and with plain apostrophes, quotes and hyphens."""
    return composed(text).translate(_TYPED)


def cuts_a_number(text: str, start: int, end: int) -> bool:
    """Whether the place start..end of a text begins or ends inside a number, or leaves out a number's sign.

    Three numbers or more with commas alone between them are a list; "25,5" is one number, and so is "1,250,000".
    """
    for run in _NUMBERS.finditer(text):
        if run.end() < start or run.start() > end:
            continue
        listed = run.group().split(",")
        if len(listed) < 3 or _GROUPED.fullmatch(run.group()):
            listed = [run.group()]
        first = run.start()
        for number in listed:
            if first < start < first + len(number) or first < end < first + len(number):
                return True
            first += len(number) + 1
        if start == run.start() and _SIGNED.search(text[max(0, start - 2) : start]):
            return True
    return False


@dataclass(frozen=True)
class CheckResult:
    """What one check says about one reply: a value in [0, 1] and words about what is wrong ("" at 1).

    parts and suggestion are set by a user's function that returns a whole Score.
    """

    value: float
    feedback: str = ""
    parts: Mapping[str, float] | None = None
    suggestion: str | None = None


RIGHT = CheckResult(1.0)


class Check(Settings):
    """A named, weighted check. `wanted` replaces its own words about what the reply should be."""

    check: str
    name: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    wanted: str | None = None

    @abstractmethod
    def grade(self, example: Example, reply: str) -> CheckResult:
        """Judge the reply to this row."""

    def mend(self, example: Example, reply: str) -> str:
        """A reply as near to this one as possible that the check accepts; the same one where it knows none."""
        return reply

    def problem(self, example: Example) -> str | None:
        """Why this row cannot be judged, as the end of a sentence; None where it can."""
        return None

    @property
    def tells(self) -> bool:
        """Whether what would be right may be shown."""
        return True

    @property
    def spec(self) -> dict[str, Any]:
        """The check as plain values, for the task's hash."""
        return self.model_dump(by_alias=True, exclude_defaults=True)


class FieldCheck(Check):
    """A check against a text of the row: its reference, or the column named by `field` (a list: any of them)."""

    field: str = REFERENCE
    reveal: bool = True

    @property
    def tells(self) -> bool:
        return self.reveal

    def texts(self, example: Example) -> list[str]:
        """The texts that are accepted, of which the first stands in suggestions."""
        value = example.reference if self.field == REFERENCE else example.fields.get(self.field)
        values = value if isinstance(value, list | tuple) else [value]
        return [str(text) for text in values if text is not None and str(text).strip()]

    def problem(self, example: Example) -> str | None:
        if self.texts(example):
            return None
        found = ", ".join(map(str, example.fields))
        return f"the check {self.name!r} needs the field {self.field!r}, which is missing or empty (found: {found})"

    def words(self, verb: str, example: Example) -> str:
        """Words about a reply that is wrong; only where it may be shown do they quote the text."""
        if self.wanted is not None:
            return f"The reply should be {self.wanted}."
        shown = repr(self.texts(example)[0]) if self.reveal else f"the right text ({self.field})"
        return f"The reply {verb} {shown}."


class ExactMatch(FieldCheck):
    """The reply is the text, up to case, spacing and the punctuation around its words."""

    ignore_case: bool = True
    ignore_whitespace: bool = True
    ignore_punctuation: bool = True

    def grade(self, example: Example, reply: str) -> CheckResult:
        if self.normal(reply) in map(self.normal, self.texts(example)):
            return RIGHT
        return CheckResult(0.0, self.words("should be exactly", example))

    def mend(self, example: Example, reply: str) -> str:
        return reply if self.grade(example, reply).value == 1 else self.texts(example)[0]

    def normal(self, text: str) -> str:
        """The text without what is ignored."""
        text = composed(text)
        if self.ignore_punctuation:
            text = re.sub(r"\S+", lambda word: word[0].lstrip(_OPENING).rstrip(_CLOSING) or word[0], text)
        if self.ignore_whitespace:
            text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text


class Contains(FieldCheck):
    """The text stands in the reply, at word boundaries (`whole_words: false`: anywhere), whatever the spacing."""

    ignore_case: bool = True
    whole_words: bool = True

    def grade(self, example: Example, reply: str) -> CheckResult:
        if any(self.finds(text, reply) for text in self.texts(example)):
            return RIGHT
        return CheckResult(0.0, self.words("does not contain", example))

    def mend(self, example: Example, reply: str) -> str:
        return reply if self.grade(example, reply).value == 1 else self.texts(example)[0]

    def finds(self, text: str, reply: str) -> bool:
        """Whether the text stands in the reply. 25 does not stand in 125, 1.25, 25.5 or -25, but in 24,25,26; nor does
        三 in 十三; 王芳 does in 由王芳看守, since scripts that put no spaces between words show no boundary.
        """
        words, reply = typed(text).split(), typed(reply)
        pattern = r"\s+".join(map(re.escape, words))
        if self.whole_words and words:
            before, after = map(_beside, (words[0][0], words[-1][-1]))
            pattern = (before and f"(?<!{before})") + pattern + (after and f"(?!{after})")
        found = re.finditer(pattern, reply, re.IGNORECASE if self.ignore_case else 0)
        return any(not (self.whole_words and cuts_a_number(reply, *match.span())) for match in found)


class Regex(Check):
    """The pattern fits the whole reply without the white space around it (`full: false`: any part of the reply).

    form builds a reply that fits, such as `ANSWER: {reply} [END]`.
    """

    pattern: str
    full: bool = True
    ignore_case: bool = False
    form: str | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return pattern

    @field_validator("form")
    @classmethod
    def _has_a_place(cls, form: str | None) -> str | None:
        if form is not None and form.count("{reply}") != 1:
            raise ValueError("must hold {reply} exactly once")
        return form

    def grade(self, example: Example, reply: str) -> CheckResult:
        flags = re.IGNORECASE if self.ignore_case else 0
        found = re.fullmatch(self.pattern, reply.strip(), flags) if self.full else re.search(self.pattern, reply, flags)
        if found:
            return RIGHT
        return CheckResult(0.0, f"The reply should be {self.wanted or f'text that fits the pattern {self.pattern}'}.")

    def mend(self, example: Example, reply: str) -> str:
        if self.form is None or self.grade(example, reply).value == 1:
            return reply
        return self.form.replace("{reply}", reply)


class UpperCase(Check):
    """The whole reply stands in capital letters, with at least one letter."""

    def grade(self, example: Example, reply: str) -> CheckResult:
        if reply == reply.upper() and reply != reply.lower():
            return RIGHT
        return CheckResult(0.0, f"The reply should be {self.wanted or 'written in capital letters throughout'}.")

    def mend(self, example: Example, reply: str) -> str:
        return reply.upper()


class JsonSchema(Check):
    """The reply is one JSON value, and nothing else, that the schema accepts."""

    # Not named `schema`, which pydantic's own models had as a method.
    shape: dict[str, Any] = Field(alias="schema")

    @field_validator("shape")
    @classmethod
    def _is_a_schema(cls, shape: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError

        from nslora.tools.rewards.json_schema import refuse_open_references

        try:
            Draft202012Validator.check_schema(shape)
            json.dumps(shape)
        except SchemaError as error:
            raise ValueError(f"no JSON schema: {error.message}") from error
        except TypeError as error:
            raise ValueError(f"holds a value that JSON does not have ({error}): write it in quotes") from error
        refuse_open_references(shape)
        return shape

    def grade(self, example: Example, reply: str) -> CheckResult:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
        from jsonschema_specifications import REGISTRY

        try:
            error = best_match(Draft202012Validator(self.shape, registry=REGISTRY).iter_errors(json.loads(reply)))
        except (ValueError, RecursionError):  # a model that repeats itself nests brackets deeper than Python's stack
            return CheckResult(0.0, f"The reply should be {self.description()}, with no text before or after it.")
        if error is None:
            return RIGHT
        return CheckResult(0.0, f"The reply should be {self.description()}, but {error.message}.")

    def mend(self, example: Example, reply: str) -> str:
        required = self.shape.get("required", [])
        if len(required) != 1 or self.grade(example, reply).value == 1:
            return reply
        field = self.shape.get("properties", {}).get(required[0])
        kind = field.get("type", "string") if isinstance(field, dict) else "string"
        return json.dumps({required[0]: reply}, ensure_ascii=False) if kind == "string" else reply

    def description(self) -> str:
        """The schema in words."""
        keys = self.shape.get("required", [])
        if self.wanted is not None or self.shape.get("type") != "object" or not keys:
            return self.wanted or f"JSON that fits the schema {json.dumps(self.shape)}"
        return f"a JSON object with the key{'s' if len(keys) > 1 else ''} {', '.join(keys)}"


class Length(Check):
    """The reply has so many words (parts between white space) or characters."""

    min_words: int | None = Field(None, ge=1)
    max_words: int | None = Field(None, ge=1)
    max_chars: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _bounds(self) -> Length:
        if self.min_words is None and self.max_words is None and self.max_chars is None:
            raise ValueError("needs at least one of min_words, max_words, max_chars")
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        return self

    def grade(self, example: Example, reply: str) -> CheckResult:
        words, chars = len(reply.split()), len(reply)
        wrong = []
        if self.min_words is not None and words < self.min_words:
            wrong.append(f"The reply should have at least {self.min_words} words, not {words}.")
        if self.max_words is not None and words > self.max_words:
            wrong.append(f"The reply should have at most {self.max_words} words, not {words}.")
        if self.max_chars is not None and chars > self.max_chars:
            wrong.append(f"The reply should have at most {self.max_chars} characters, not {chars}.")
        if not wrong:
            return RIGHT
        return CheckResult(0.0, " ".join(wrong) if self.wanted is None else f"The reply should be {self.wanted}.")

    def mend(self, example: Example, reply: str) -> str:
        if self.max_words is not None and len(reply.split()) > self.max_words:
            ends = [word.end() for word in re.finditer(r"\S+", reply)]
            reply = reply[: ends[self.max_words - 1]]
        return reply[: self.max_chars].rstrip() if self.max_chars is not None else reply
