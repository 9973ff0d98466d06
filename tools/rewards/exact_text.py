"""Whether two texts are one text: the same letters, marks and structure, however they were typed.

Forgiven are Unicode forms (curly quotes, dashes, full-width letters, zero-width characters), marks that end the whole
text, one balanced pair of quotes, brackets or emphasis around it, and the case of plain words. Nothing inside is.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−﹣⁃"), "-")
_TYPED: dict[int, str] = {
    **_DASHES,
    **dict.fromkeys(map(ord, "‘’‚‛ʼ"), "'"),
    **dict.fromkeys(map(ord, "“”„‟"), '"'),
    ord("…"): "...",
}
_MOST_LAYERS = 8  # a model that repeats itself nests deeper
_MEANINGFUL = frozenset("%‰‱&@#/\\*'\"§¶†‡′″")  # end a text as part of it: 50%, C#, f'
_LEADING = frozenset("¿¡")  # a full stop or an exclamation mark in front is part of the text: .5, .NET, !x
_PAIRS = {"(": ")", "[": "]", "{": "}", "「": "」", "『": "』", "«": "»", "‹": "›", "《": "》", "〈": "〉", "【": "】"}
_ADDRESS = re.compile(r"://|[\\/]\w*[\\/]|\A[a-zA-Z]:\\")  # of a page or a file, where case counts
_ALIKE = ("***", "**", "*", "__", "```", "`", '"', "'", "$$", "$")
_WORDS_IN_CAPITALS = frozenset({"YES", "NO", "OK", "AND", "OR", "NOT", "THE", "ALL"})


def typed(text: str) -> str:
    """Write a text with plain quotes, hyphens and letters of normal width, without invisible characters."""
    text = unicodedata.normalize("NFC", text).translate(_TYPED)
    return "".join(
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).startswith(("<wide>", "<narrow>")) else c
        for c in text
        if unicodedata.category(c) != "Cf"
    )


def without_edges(text: str) -> list[str]:
    """List a text without the marks that end it, then without each pair around it, from the outside in."""
    layers = [_without_marks(text)]
    while len(layers) < _MOST_LAYERS and (inner := _unwrapped(layers[-1])) is not None and inner.strip():
        layers.append(_without_marks(inner))
    return layers


def laid_out(text: str, lines: bool) -> str:
    """Write a text with single spaces; with `lines`, a text with indented lines keeps lines and indentation."""
    if not lines or not re.search(r"\S[^\n]*\n[ \t]+\S", text.strip("\n")):
        return " ".join(text.split())
    kept = textwrap.dedent(text.expandtabs(4)).splitlines()
    return "\n".join(re.match(r" *", line)[0] + " ".join(line.split()) for line in kept if line.strip())  # type: ignore[index]


def same_but_for_case(text: str, reply: str) -> bool:
    """Whether two texts differ at most in the case of plain words.

    Case counts in tokens where it tells things apart: mixed case (mW, kHz), short capitals (MW, US), units behind a
    number, and letters with digits (CO2).
    """
    if text == reply:
        return True
    if text.casefold() != reply.casefold() or _ADDRESS.search(text):
        return False
    ours, theirs = re.findall(r"\w+|\W+", text), re.findall(r"\w+|\W+", reply)
    if len(ours) != len(theirs):
        return False
    shouted = text == text.upper() and any(len(token) > 3 and token.isalpha() for token in ours)
    for index, (ours_token, theirs_token) in enumerate(zip(ours, theirs, strict=True)):
        before = ours[index - 2] if index >= 2 and ours[index - 1].isspace() else ""
        unit = before.isdecimal() and len(ours_token) <= 3
        if ours_token != theirs_token and (unit or not _plain(ours_token, theirs_token, shouted)):
            return False
    return True


def _plain(token: str, other: str, shouted: bool) -> bool:
    """Whether the case of a token of the reference says nothing, nor does the case in the reply."""
    if any(c.isdigit() for c in token) or not all(map(_in_one_case, (token, other))):
        return False
    if len(token) == 1 and unicodedata.name(token, "").startswith("GREEK"):  # π is not Π
        return False
    if len(token) == 1 or token.islower() or shouted or token.upper() in _WORDS_IN_CAPITALS:
        return True
    return len(token) > 3 or (not token.isupper() and not other.isupper())


def _in_one_case(token: str) -> bool:
    return token in (token.lower(), token.upper()) or (token[:1].isupper() and token[1:] == token[1:].lower())


def _without_marks(text: str) -> str:
    """Strip white space at both edges, inverted marks in front, and punctuation (category Po) at the end."""
    text = text.strip()
    end = len(text)
    while end and (text[end - 1].isspace() or _is_end_mark(text, end - 1)):
        end -= 1
    start = 0
    while start < end and text[start] in _LEADING:
        start += 1
    return text[start:end] or text


def _is_end_mark(text: str, place: int) -> bool:
    """Whether a character is punctuation (category Po) that only ends a text, unlike the factorials 5! and n!."""
    mark = text[place]
    if mark == "!" and re.search(r"(?:[\d)\]]|(?:\A|\W)[a-zA-Z])!*\Z", text[max(0, place - 3) : place]):
        return False
    return unicodedata.category(mark) == "Po" and mark not in _MEANINGFUL


def _unwrapped(text: str) -> str | None:
    """Take one balanced pair off the edges of a text; None if there is none."""
    text = text.strip()
    for mark in _ALIKE:
        inner = text[len(mark) : -len(mark)]
        if mark == "__" and " " not in inner:  # __init__
            continue
        if text.startswith(mark) and text.endswith(mark) and inner.strip() and mark[0] not in inner:
            return inner
    closing = _PAIRS.get(text[:1])
    if closing is None or text[-1] != closing or re.search(r"[,;]", text):
        return None
    depth = 0
    for place, c in enumerate(text):
        depth += (c == text[0]) - (c == closing)
        if depth == 0:
            return text[1:-1] if place == len(text) - 1 else None
    return None
