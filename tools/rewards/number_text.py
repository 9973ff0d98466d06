r"""Read the one number of a text, or say that it has none.

The number marked as the answer counts (`\boxed{18}`, "#### 18", "the answer is 18", "答案是18"), else the last. It is
a `Decimal` if it is written out, and an `Expression` for math-verify if it is a fraction, a percentage or LaTeX. A
date, a time, a range, a choice ("5 or 6"), a comparison ("less than 42") and a negation ("not 42") are no number.
"""

from __future__ import annotations

import decimal
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from nslora.tools.prompt import MINUS
from nslora.tools.rewards.checks import SPACELESS_RANGES
from nslora.tools.rewards.denials import CLAIM_DENIED
from nslora.tools.rewards.number_words import (
    COMPARED_AFTER,
    COMPARED_BEFORE,
    DIFFERENCE,
    EXCLAIMED,
    FUNCTION_BEFORE,
    JOINED,
    LENGTHS,
    MARKS,
    MONTH_AFTER,
    MONTH_BEFORE,
    MONTHS,
    NEGATED_BEFORE,
    NO_VERB_BEFORE,
    SCALES,
    SCALES_ATTACHED,
    UNIT_WORD,
    UNITS,
    in_digits,
)

ENOUGH = decimal.Context(
    prec=1000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[]
)  # enough digits to subtract any two answers
LONGEST_CHARS = 4000  # of a longer reply, only the end is read: the result is there
_NEAR_CHARS = 300  # a sentence without end is read no further back
_LETTER = rf"[^\W\d{SPACELESS_RANGES}]"

_RUN = re.compile(
    rf"(?:(?<![^\W{SPACELESS_RANGES}])(?<![.,]))(?P<sign>(?<![)\]}}])[-+])?"
    rf"(?P<digits>\d+(?:[.,'’]\d+)*|\.\d+)(?P<exponent>[eE][-+]?\d+(?!{_LETTER}))?"
)
_GROUPS = (
    (re.compile(r"\d+(?:\.\d+)?|\.\d+"), "", "."),  # 1234.5
    (re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|0,000"), ",", "."),  # 1,234.5
    (re.compile(r"[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?"), ",", "."),  # Indian: 12,34,567
    (re.compile(r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}"), ".", ","),  # European: 1.234,5
    (re.compile(r"[1-9]\d{0,2}(?:['’]\d{3})+(?:\.\d+)?"), "'", "."),  # Swiss: 1'234.5
)
# "**18**" and "_18_" are 18 in bold and in italics; "9*2*3" and "a_b_c" have no emphasis.
_EMPHASIS = re.compile(r"(?<![\w*_\\])(\*{1,3}|_{1,3})(?=\S)(.{1,400}?)(?<=\S)\1(?![\w*])")
_THOUSANDS = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f]|,?\\[,!]|\{,\})(?=\d{3}(?!\d))")
_POWERED = re.compile(
    rf"(?<=\d)(\s*)({'|'.join(sorted(LENGTHS, key=len, reverse=True))})\s*(?:([²³])|\^\s*\{{?([23])\}}?)"
)
_SPACED = re.compile(r"(?<![\d.,])(?<!\d )([1-9]\d{0,2}(?: \d{3})+),(\d{1,2})(?![\d,])")  # 1 234 567,89
_SENTENCE_END = re.compile(r"[.!?;。！？](?=\s|\Z)|\n")
_OPERATOR_BEFORE = re.compile(r"(?:[*/^×÷{|\\√]|[-+](?=\s*\Z|\())\s*\(*\s*\Z|[)\]}]\s*\Z|\d\s*[(\[]\s*\Z")
_OPERATOR_AFTER = re.compile(r"\s*(?:[*/^×÷%=\\|√]|[+-]\s*[\d(a-z\\])|[{}(\[]")
_RELATION = re.compile(
    r"\\(?:leq?|geq?|neq?|ll|gg|lt|gt|pm|cup|infty|in|approx|sim|lor|text)(?![a-zA-Z])|[≤≥≠±∞∪<>]|!="
)
_LIST_BEFORE = re.compile(r"\d[%°]?\s*[,;&]\s*\Z")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_BARE_LATEX = re.compile(r"(?:\\[a-zA-Z]+|\\.|[{}^_()\[\]+\-*/=.,!\d\s]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+")


@dataclass(frozen=True)
class Expression:
    """A text for math-verify, which finds its last expression."""

    text: str


@dataclass(frozen=True)
class Reading:
    """The number of a text: a Decimal, an Expression, or None. `unit` is the known unit beside it, else ""."""

    number: Decimal | Expression | None
    unit: str = ""


def read_number(text: str) -> Reading:
    """Read the number of a text."""
    text = _typed(in_digits(text if len(text) <= LONGEST_CHARS else text[-LONGEST_CHARS:].partition(" ")[2]))
    region, sure = _marked(text)
    clean = _without_markup(region)
    found = [each for each in _RUN.finditer(clean) if not _in_a_word(clean, each)]
    if _RELATION.search(_last_clause(clean, found)):
        return Reading(None)
    if not found:
        return Reading(Expression(_expression(region, sure)) if _has_latex(clean) else None)
    if _has_latex(clean[found[-1].end() :]) or re.search(r"\bpi\b|π", clean[found[-1].end() :]):
        return Reading(Expression(_expression(region, sure)))
    return _read_last(region, clean, found, sure)


def _last_clause(text: str, found: list[re.Match[str]]) -> str:
    """Give the text from the start of the clause of the last number; all of it without numbers."""
    starts = (
        [each.end() for each in re.finditer(r"[,;:。，](?=\s)|[.!?]\s|\n", text[: found[-1].start()])] if found else []
    )
    return text[max(starts, default=0) :]


def _read_last(region: str, clean: str, found: list[re.Match[str]], sure: bool) -> Reading:
    """Read the last of the numbers found in `clean`, the region without markup."""
    while len(found) > 1 and re.match(
        r"\W*[,(;\s]\s*(?:and\s+|but\s+)?not\s+\S{0,2}\Z", clean[found[-2].end() : found[-1].start()]
    ):
        found = found[:-1]  # "18, not 17"
        clean = clean[: found[-1].end()]
    last = found[-1]
    start = last.start("digits") if _is_hyphen(clean, last) else last.start()
    before, after = clean[:start], clean[last.end() :]
    sentence = _SENTENCE_END.split(before)[-1][-_NEAR_CHARS:]
    value, after, unit = _scaled(last, after, with_sign=start == last.start())
    if _no_single_number(before, sentence, after, found):
        return Reading(None)
    if FUNCTION_BEFORE.search(before):
        return Reading(None)
    if _OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(after):
        if re.search(r"\d[xyzabnpqrtuvw](?![a-zA-Z\d])", _last_clause(clean, found)):
            return Reading(None)  # 8x+1, which math-verify takes for 8
        return Reading(Expression(_expression(region, sure)), unit or ("%" if re.match(r"\s*%", after) else ""))
    if value is None or re.match(_LETTER, after):
        return Reading(None)
    return Reading(value, unit or _currency(before))


def _no_single_number(before: str, sentence: str, after: str, found: list[re.Match[str]]) -> bool:
    """Whether the text around the last number makes it a comparison, a date, a time, a range or one of a list."""
    if any(words.search(sentence) for words in (COMPARED_BEFORE, NEGATED_BEFORE, CLAIM_DENIED)):
        return True
    if COMPARED_AFTER.match(after) or (NO_VERB_BEFORE.search(sentence) and DIFFERENCE.match(after)):
        return True
    if MONTH_BEFORE.search(before) or MONTH_AFTER.match(after):
        return True
    if re.search(
        r"\b(?:between|from|either|neither)\b[^,;]*\d[^,;]*\b(?:and|to|or|nor)\b\W*\Z", sentence, re.IGNORECASE
    ):
        return True
    if len(found) == 1:
        return False
    gap = before[found[-2].end() :]
    if _OPERATOR_BEFORE.search(before) and len(found) > 2 and re.fullmatch(r"[/.]", gap):
        return bool(re.fullmatch(r"[/.]", before[found[-3].end() : found[-2].start()]))  # 5/6/2024
    return bool(JOINED.fullmatch(gap) or _LIST_BEFORE.search(before) or MONTHS.fullmatch(gap.strip(" .,")))


def _scaled(match: re.Match[str], after: str, with_sign: bool) -> tuple[Decimal | None, str, str]:
    """Give the value with its scale ("1.5 million"), the text that follows, and the known unit that follows."""
    value = _value(match, with_sign)
    attached = re.match(rf"({'|'.join(SCALES_ATTACHED)})(?![\w])", after)
    if attached:
        after, scale = after[attached.end() :], Decimal(SCALES_ATTACHED[attached.group(1)])
        value = value * scale if value is not None else None
    while scale_word := re.match(rf"[\s-]*({'|'.join(SCALES)})", after, re.IGNORECASE):
        if scale_word.group(1).isascii() and re.match(r"\w", after[scale_word.end() :]):
            break
        with decimal.localcontext(ENOUGH):
            value = value * Decimal(SCALES[scale_word.group(1).lower()]) if value is not None else None
        after = after[scale_word.end() :]
    unit = UNIT_WORD.match(after)
    name = "" if unit is None else UNITS.get(unit.group(1), "") or UNITS.get(unit.group(1).lower(), "")
    return (value, after[unit.end() :], name) if unit is not None and name else (value, after, "")


def _value(match: re.Match[str], with_sign: bool) -> Decimal | None:
    """Evaluate digits in one of the ways to group thousands; None if it is none of them ("25,5", "1.2.3")."""
    digits = match.group("digits")
    for pattern, thousands, point in _GROUPS:
        if pattern.fullmatch(digits):
            plain = digits.replace("’", "'").replace(thousands, "").replace(point, ".") if thousands else digits
            sign = (match.group("sign") or "") if with_sign else ""
            with decimal.localcontext(ENOUGH):
                return Decimal(sign + plain + (match.group("exponent") or ""))
    return None


def _in_a_word(text: str, match: re.Match[str]) -> bool:
    """Whether digits are an ordinal ("2nd") or a decade ("the 1960s")."""
    after = text[match.end() :]
    decade = (
        match.group().endswith("0") and re.match(r"['’]?s\b", after) and re.search(r"\bthe\s+\Z", text[: match.start()])
    )
    return bool(decade or re.match(r"(?:st|nd|rd|th)\b", after))


def _is_hyphen(text: str, match: re.Match[str]) -> bool:
    """Whether the sign of a number joins it to what stands before, as in "第-5" and "(3)-4"."""
    return match.group("sign") is not None and bool(re.search(r"[\w)\]}]\Z", text[: match.start()]))


def _currency(before: str) -> str:
    found = re.search(r"([$€£¥₹])\s*\Z", before)
    return found.group(1) if found else ""


def _typed(text: str) -> str:
    """Write digits and full-width marks in ASCII, superscripts as powers, without emphasis, tags and arrows."""
    text = "".join(
        str(unicodedata.decimal(c))
        if unicodedata.category(c) == "Nd"
        else " " + unicodedata.normalize("NFKC", c)
        if unicodedata.decomposition(c).startswith("<fraction>")
        else unicodedata.normalize("NFKC", c)
        if "\uff01" <= c <= "\uff5e" or c == "\u3000"
        else c
        for c in text
        if unicodedata.category(c) != "Cf"
    )
    text = text.translate(MINUS).replace("⁄", "/").replace("＋", "+")
    text = _POWERED.sub(lambda m: f"{m[1]}{'square' if (m[3] or m[4]) in '²2' else 'cubic'} {m[2]}", text)
    text = re.sub(r"(?<=[a-z])[²³]", "", text)
    text = re.sub(r"(?<=\d)\s*x\s*(?=10\s*(?:\^|\*\*|[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]))", " × ", text)
    text = re.sub(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=\d)\s*(?:\*\s*)?pi\b", r"\\pi", text)
    text = _SPACED.sub(lambda m: m[1].replace(" ", "") + "." + m[2], text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda power: "^{" + power.group().translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"<<[^<>\n]*>>|</?[a-zA-Z][^<>\n]*>|[-=]+>|→|⇒", " ", text)
    text = re.sub(r"\b(?:minus|negative)\s+(?=[$€£¥₹]?\d)", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<![\w)])-(\\?[$€£¥₹])(?=\d)(?!\$\d+\$)", r"\1-", text)
    text = re.sub(r"(\d)\s*(?:per\s?cent\b|パーセント)", r"\1%", text)
    text = _THOUSANDS.sub("", _EMPHASIS.sub(r"\2", text))
    return EXCLAIMED.sub(lambda match: f"{match[1] or ''}.", text)


def _marked(text: str) -> tuple[str, bool]:
    """Cut out the part that the text marks as its answer, and say whether it does; else the whole text."""
    box = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if box >= 0:
        start = text.index("{", box) + 1
        depth, end = 1, start
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        return text[start : end - (depth == 0)], True
    marked = [
        each[1]
        for each in MARKS.finditer(text)
        if re.search(r"\d|\\[a-zA-Z]", each[1])
        and not CLAIM_DENIED.search(text[max(0, each.start() - 80) : each.start()])
    ]
    return (marked[-1], True) if marked else (text, False)


def _without_markup(text: str) -> str:
    r"""Drop LaTeX that is no mathematics: `$...$`, `\text{ cm}`, `\,`, `\left`."""
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree", "°", text)
    text = re.sub(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[()\[\],;:! ]", " ", text)
    text = text.replace("\\%", "%").replace("\\$", "$")
    text = _POWERED.sub(lambda m: f"{m[1]}{'square' if m[4] == '2' else 'cubic'} {m[2]}", text)  # of \text{m}^2
    return re.sub(r"\$(?!\s*[-\d])|(?<=\d)\$", " ", text)


def _has_latex(text: str) -> bool:
    return bool(re.search(r"\\[a-zA-Z]|√", text))


def _expression(region: str, sure: bool) -> str:
    """Write a region for math-verify: bare LaTeX between dollar signs, mixed numbers as fractions."""
    region = re.sub(r"\\[dt]frac", r"\\frac", region.replace("\\$", ""))
    region = region.replace("×", "*").replace("÷", "/")
    region = re.sub(r"√\s*\(?(\d+)\)?", r"\\sqrt{\1}", region).replace("π", r"\pi ")
    region = re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\!", "", region)
    region = re.sub(
        r"(?<![\d.])(\d+)\s*(?:\\frac\s*\{?(\d+?)\}?\s*\{?(\d+)\}?|(?<=\s)(\d+)/(\d+))",
        lambda m: _mixed(int(m[1]), int(m[2] or m[4]), int(m[3] or m[5])),
        region,
    )
    if re.search(r"\$.+\$|\\\(|\\\[", region, re.DOTALL):
        return region
    region = region.replace("$", "")
    if sure or not re.search(r"[^\W\d_]{2,}\s", re.sub(r"\\[a-zA-Z]+", "", region)):
        return f"${region.strip(' .,')}$" if re.search(r"[\\^{]", region) else region
    runs = [run.strip(" .,\n") for run in _BARE_LATEX.findall(region) if "\\" in run]
    return f"${runs[-1]}$" if runs else region


def _mixed(whole: int, above: int, below: int) -> str:
    return rf"\frac{{{whole * below + above}}}{{{below}}}"
