"""The built-in checks: each scores a reply, explains what is wrong, and repairs the reply if it can.

A check does not say whether it scores content or form; no part of the loop may know. Options are the fields of its
class, so an unknown option in task.yaml is an error that names the option.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from nslora.tools.answers import accepted_texts, column_value, has_column
from nslora.tools.prompt import MINUS
from nslora.tools.rewards.exact_text import laid_out, same_but_for_case, typed, without_edges
from nslora.tools.schema import Settings

if TYPE_CHECKING:
    from nslora.tools.schema import Example

# Scripts without spaces between words, and Hangul, whose words take endings: Thai to Khmer, kana, Han, Hangul.
SPACELESS_RANGES = (
    r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f"
    r"\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Begins a sentence of feedback that holds for its row alone: an editor must not make a rule of it.
ROW_PREFIX = "For this question, "
_SPACELESS = re.compile(f"[{SPACELESS_RANGES}]")
_MOST_LABELS = 50
_NUMERALS = "[〇零一二三四五六七八九十百千万萬亿億]"
_ONE_BY_ONE = (
    r"(?=\w)[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    r"\uff66-\uff9f\U00020000-\U0003ffff]"
)
_WORD = re.compile(rf"[^\w\s]*{_ONE_BY_ONE}[^\w\s]*|(?:(?!{_ONE_BY_ONE})\S)+")
_IN_WORDS = rf"[^\W{SPACELESS_RANGES}]"
_TYPED = MINUS | str.maketrans("‘’ʼ“”", "'''\"\"")
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")
_SIGNED = re.compile(r"(?:^|[^\w)\]])-\Z")  # a minus sign, unlike the hyphen in "1910-1911", "B-25" and "(3)-4"


def _beside(end: str) -> str:
    """Give the pattern of a character that would continue a word after (or before) `end`; "" if none would."""
    if re.match(_NUMERALS, end):
        return _NUMERALS  # 三 is not the number 十三
    return "" if _SPACELESS.match(end) else _IN_WORDS


def _composed(text: str) -> str:
    """Normalise to Unicode NFC: a letter and its accents are one character."""
    return unicodedata.normalize("NFC", text)


def _cuts_a_number(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] begins or ends inside a number, or leaves out a number's sign.

    Three or more numbers with commas alone between them are a list; "25,5" and "1,250,000" are one number each.
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
    """The result of one check on one reply.

    Attributes:
        value: In [0, 1].
        feedback: What is wrong; "" at 1.
        parts: Named values in [0, 1], if a user's function returned a Score.
        suggestion: A reply that a user's function suggested.
    """

    value: float
    feedback: str = ""
    parts: Mapping[str, float] | None = None
    suggestion: str | None = None


class Check(Settings):
    """A named, weighted check. `wanted` replaces the check's own description of a right reply in feedback."""

    revision: ClassVar[int] = 1  # of its scoring; a run that was begun under another one is not resumed
    all_answers: ClassVar[bool] = False  # whether it reads all right answers of a row at once, not one after another
    check: str
    name: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    wanted: str | None = None

    @abstractmethod
    def grade(self, example: Example, reply: str) -> CheckResult:
        """Score the reply to this row."""

    def mend(self, example: Example, reply: str) -> str:
        """Repair the reply with as little change as possible; return it unchanged if the check knows no repair."""
        return reply

    def problem(self, example: Example) -> str | None:
        """Say why the check cannot score this row, as the end of a sentence; None if it can."""
        return None

    def remark(self, examples: Sequence[Example]) -> str | None:
        """Say what in these rows makes the check earn reward by chance; None if nothing does."""
        return None

    def fitted(self, examples: Sequence[Example]) -> Self:
        """The check with what it takes from the train rows. Raises RewardError if they do not have it."""
        return self

    @property
    def at_once(self) -> int:
        """Most replies that it scores at the same time."""
        return 1

    @property
    def spec(self) -> dict[str, Any]:
        """The check as plain values, for the task's hash."""
        return self.model_dump(by_alias=True, exclude_defaults=True)

    def spec_of(self, revision: int) -> dict[str, Any]:
        """The spec under a revision; the first one is not named, so that tasks keep their hash."""
        return self.spec | ({"revision": revision} if revision > 1 else {})


class BuiltInCheck(Check):
    """A check that a reply passes or fails: value 1 or 0."""

    @abstractmethod
    def fault(self, example: Example, reply: str) -> str | None:
        """Say what is wrong with the reply; None if it passes."""

    def repaired(self, example: Example, reply: str) -> str:
        """Repair a reply that fails; return it unchanged if the check knows no repair."""
        return reply

    def grade(self, example: Example, reply: str) -> CheckResult:
        fault = self.fault(example, reply)
        return CheckResult(1.0) if fault is None else CheckResult(0.0, fault)

    def mend(self, example: Example, reply: str) -> str:
        return reply if self.fault(example, reply) is None else self.repaired(example, reply)


class FieldCheck(BuiltInCheck):
    """A check against a text of the row: its reference, or the column named by `field`.

    Any of several texts is accepted: of a list, or of a mapping such as `{"value": ..., "aliases": [...]}`.

    `reveal: false` hides the text from feedback, and all suggestions of the reward.
    """

    must: ClassVar[str]  # "For this question, the reply must {must} 'text'."
    field: str = "reference"
    reveal: bool = True

    @abstractmethod
    def matches(self, text: str, reply: str) -> bool:
        """Whether the reply passes for this text."""

    def unfit(self, text: str) -> str | None:
        """Say why no reply can pass for this text, as `problem` does; None if one can."""
        return None

    def texts(self, example: Example) -> list[str]:
        """List the accepted texts. Suggestions use the first. Raises ValueError if the value holds no texts."""
        if self.field == "reference":
            return accepted_texts(example.reference)
        return accepted_texts(
            column_value(example.fields, self.field) if has_column(example.fields, self.field) else None
        )

    def problem(self, example: Example) -> str | None:
        try:
            if texts := self.texts(example):
                return next(filter(None, map(self.unfit, texts)), None)
        except ValueError as error:
            return f"the check {self.name!r} needs text in the field {self.field!r}, which holds {error}"
        found = ", ".join(map(str, example.fields))
        return f"the check {self.name!r} needs the field {self.field!r}, which is missing or empty (found: {found})"

    def fault(self, example: Example, reply: str) -> str | None:
        texts = self.texts(example)
        if any(self.matches(text, reply) for text in texts):
            return None
        if self.wanted is not None:
            return f"The reply should be {self.wanted}."
        text = repr(texts[0]) if self.reveal else f"the right text ({self.field})"
        return f"{ROW_PREFIX}the reply must {self.must} {text}."

    def repaired(self, example: Example, reply: str) -> str:
        return self.texts(example)[0]


class ExactMatch(FieldCheck):
    """The reply equals the text, however it was typed.

    White space, the marks around the whole text and the case of plain words do not count. Marks inside, lines and
    indentation of code, and the case of tokens such as MW and mW do; see `exact_text`.
    """

    revision = 2  # structure and the case of tokens count
    must = "be exactly"
    ignore_case: bool = True
    ignore_whitespace: bool = True
    ignore_punctuation: bool = True

    def matches(self, text: str, reply: str) -> bool:
        same = same_but_for_case if self.ignore_case else str.__eq__
        ours, theirs = self._layers(text, text), self._layers(reply, text)
        # Around one of the two only: [0] and (0) stay apart.
        return any(same(ours[0], each) for each in theirs) or any(same(each, theirs[0]) for each in ours[1:])

    def _layers(self, text: str, reference: str) -> list[str]:
        layers = without_edges(typed(text)) if self.ignore_punctuation else [typed(text)]
        return [laid_out(each, "\n" in reference.strip()) for each in layers] if self.ignore_whitespace else layers


class Contains(FieldCheck):
    """The reply contains the text at word boundaries (`whole_words: false`: anywhere), whatever the white space."""

    must = "contain"
    ignore_case: bool = True
    whole_words: bool = True

    def matches(self, text: str, reply: str) -> bool:
        """Whether the reply contains the text.

        24,25,26 contains 25, but 125, 1.25, 25.5 and -25 do not. 十三 does not contain 三. 由王芳看守 contains
        王芳, because scripts without spaces between words show no boundary.
        """
        words, reply = _composed(text).translate(_TYPED).split(), _composed(reply).translate(_TYPED)
        pattern = r"\s+".join(map(re.escape, words))
        if self.whole_words and words:
            before, after = map(_beside, (words[0][0], words[-1][-1]))
            pattern = (before and f"(?<!{before})") + pattern + (after and f"(?!{after})")
        found = re.finditer(pattern, reply, re.IGNORECASE if self.ignore_case else 0)
        return any(not (self.whole_words and _cuts_a_number(reply, *match.span())) for match in found)

    def remark(self, examples: Sequence[Example]) -> str | None:
        """Name two labels of which one stands inside the other. More than 50 different texts are no labels."""
        firsts = {texts[0].strip(): None for example in examples if (texts := self.texts(example))}
        if len(firsts) > _MOST_LABELS or len(firsts) == len(examples):
            return None
        for inner in firsts:
            outer = next((text for text in firsts if text != inner and self.matches(inner, text)), None)
            if outer is not None or inner in ("A", "I"):
                where = f"stands inside {outer!r}" if outer is not None else "is also a word"
                return (
                    f"The check {self.name!r} asks whether a reply contains the text, and {inner!r} {where}: a wrong "
                    "reply can earn its reward. Use the check `choice` with the labels."
                )
        return None


class Regex(BuiltInCheck):
    """The pattern matches the whole reply, stripped (`full: false`: any part of the reply).

    `form` builds a matching reply, for example `ANSWER: {reply} [END]`.
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
            raise ValueError(f"invalid regular expression: {error}") from error
        return pattern

    @field_validator("form")
    @classmethod
    def _has_a_place(cls, form: str | None) -> str | None:
        if form is not None and form.count("{reply}") != 1:
            raise ValueError("must contain {reply} exactly once")
        return form

    def fault(self, example: Example, reply: str) -> str | None:
        flags = re.IGNORECASE if self.ignore_case else 0
        found = re.fullmatch(self.pattern, reply.strip(), flags) if self.full else re.search(self.pattern, reply, flags)
        if found:
            return None
        return f"The reply should be {self.wanted or f'text that matches the pattern {self.pattern}'}."

    def repaired(self, example: Example, reply: str) -> str:
        return reply if self.form is None else self.form.replace("{reply}", reply)


class UpperCase(BuiltInCheck):
    """The whole reply is in capital letters and has at least one letter."""

    def fault(self, example: Example, reply: str) -> str | None:
        if reply == reply.upper() and reply != reply.lower():
            return None
        return f"The reply should be {self.wanted or 'written in capital letters throughout'}."

    def repaired(self, example: Example, reply: str) -> str:
        return reply.upper()


class JsonSchema(BuiltInCheck):
    """The reply is one JSON value, valid under the schema, with no text around it."""

    # Not named `schema`: that is a deprecated method of pydantic models.
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
            raise ValueError(f"invalid JSON schema: {error.message}") from error
        except TypeError as error:
            raise ValueError(f"contains a value that JSON cannot represent ({error}): write it in quotes") from error
        refuse_open_references(shape)
        return shape

    def fault(self, example: Example, reply: str) -> str | None:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
        from jsonschema_specifications import REGISTRY

        try:
            error = best_match(Draft202012Validator(self.shape, registry=REGISTRY).iter_errors(json.loads(reply)))
        except (ValueError, RecursionError):  # a model that repeats itself nests brackets deeper than Python's stack
            return f"The reply should be {self._description()}, with no text before or after it."
        return None if error is None else f"The reply should be {self._description()}; here {error.message}."

    def repaired(self, example: Example, reply: str) -> str:
        required = self.shape.get("required", [])
        if len(required) != 1:
            return reply
        field = self.shape.get("properties", {}).get(required[0])
        kind = field.get("type", "string") if isinstance(field, dict) else "string"
        return json.dumps({required[0]: reply}, ensure_ascii=False) if kind == "string" else reply

    def _description(self) -> str:
        keys = self.shape.get("required", [])
        if self.wanted is not None or self.shape.get("type") != "object" or not keys:
            return self.wanted or f"JSON that is valid under the schema {json.dumps(self.shape)}"
        return f"a JSON object with the key{'s' if len(keys) > 1 else ''} {', '.join(keys)}"


class Length(BuiltInCheck):
    """The reply has a bounded number of words or characters (Unicode code points).

    White space separates words. In scripts that write none (Han, kana, Thai, Lao, Burmese, Khmer), each character
    counts as one word, together with its combining marks and the punctuation beside it.
    """

    revision = 2  # scripts without spaces
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

    def fault(self, example: Example, reply: str) -> str | None:
        words, chars = len(_WORD.findall(reply)), len(reply)
        wrong = []
        if self.min_words is not None and words < self.min_words:
            wrong.append(f"The reply should have at least {self.min_words} words; this one has {words}.")
        if self.max_words is not None and words > self.max_words:
            wrong.append(f"The reply should have at most {self.max_words} words; this one has {words}.")
        if self.max_chars is not None and chars > self.max_chars:
            wrong.append(f"The reply should have at most {self.max_chars} characters; this one has {chars}.")
        if not wrong:
            return None
        return " ".join(wrong) if self.wanted is None else f"The reply should be {self.wanted}."

    def mend(self, example: Example, reply: str) -> str:  # also strips a reply that is short enough
        ends = [word.end() for word in _WORD.finditer(reply)]
        if self.max_words is not None and len(ends) > self.max_words:
            reply = reply[: ends[self.max_words - 1]]
        return reply[: self.max_chars].rstrip() if self.max_chars is not None else reply
