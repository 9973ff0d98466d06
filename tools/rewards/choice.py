"""The choice check: which one of a closed set of labels a reply chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import field_validator

from nslora.tools.rewards.checks import SPACELESS_RANGES, FieldCheck
from nslora.tools.rewards.denials import CLAIM_DENIED, DENIED_AFTER, FOREIGN
from nslora.tools.rewards.exact_text import typed, without_edges

if TYPE_CHECKING:
    pass

_Mentions = list[tuple[int, int, str]]

_LONGEST_CHARS = 4000  # of a longer reply, only the end is read
_NEAR_CHARS = 160  # a sentence without end is read no further
LETTERS = tuple("ABCDEFGHIJ")

_MARK = re.compile(
    r"(?i)(?:####|\\(?:boxed|fbox|text)\{|"
    r"(?<!wrong )(?<!incorrect )(?<!not the )\b(?:answer|choice|option|label|category|class|verdict|"
    r"sentiment|correct|final)"
    r"(?:\s+(?:is|would be|should be)|\s*[:=]|\s+[-–—](?=\s))+|(?:答案|选项|選項)(?:是|为|為|选|[:：])+|"
    r"(?:答え|正解)(?:は|[:：])+|(?<![不没別别])[选選](?:择|擇)?|"
    r"\b(?:Antwort\s+(?:ist|lautet)|réponse\s+est|respuesta\s+(?:correcta\s+)?es|resposta\s+é|risposta\s+è)\s+|"
    r"คำตอบ(?:คือ|:)|정답은)\s*(?:option\s+|choice\s+|letter\s+|\\text\{|[(\[\"'{$])*"
)
_NEGATED = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|cannot|without|hardly|barely|scarcely|unlikely|except|exclude[sd]?|non|\w+n't|"
    r"free of|far from|disagree with|lacks?|"
    rf"{FOREIGN}|"
    r"eliminat\w+|rul(?:e|es|ed|ing) out|discard\w*|cross(?:ed|ing)? out|reject\w*|fail(?:s|ed)? to|"
    r"(?:(?:any|every)thing|all|none) but|incorrect|nobody|no one|"
    r"less|opposite of|instead of|rather than|other than|anything but|than|wrong|false)\b(?!\s+only\b)"
    r"(?:[ \t]+(?!but\b|so\b)[\w'(]+){0,3}[ \t-]*|"
    r"\b(?:wrong|incorrect)(?:\s+\w+){0,2}\s*:\s*|[不非没無未][是选選]?(?:择|擇)?[ \t]*)[(\[\"'*]*\Z",
    re.IGNORECASE,
)
_DENIED = re.compile(rf"[)\]\"'*]*(?:{DENIED_AFTER}|-free\b|\s+than\b|\s*(?:ではな|じゃな|でな))", re.IGNORECASE)
# What may follow a letter that is a choice, unlike the article in "A car" and the pronoun in "I think".
_AFTER_LETTER = re.compile(
    rf"\s*(?:[.,;:!?。，！)\]}}\"'$/&]|\Z|\n)|\s+(?:because|since|as|and|or|but|nor|is|was|while|fits?|works?|holds?|matches|seems|looks)\b|\s+\(|[{SPACELESS_RANGES}]"
)
_BEFORE_LETTER = re.compile(
    r"(?:\A|[\n(\[{\"'$]|[.;:,!?]\s|\b(?:option|choice|answer|letter|think|thinks|choose|chose|pick|select|say|guess|believe|"
    r"maybe|perhaps|probably|possibly|likely|certainly|definitely|surely|just|only|suggests?|opci[oó]n|"
    r"is|be|it's|with|so|sondern|mais|sino|donc|daher|but|therefore|thus|hence|to)\b:?)\s*[(\[\"'{$]*\Z",
    re.IGNORECASE,
)
_DETERMINERS = ("no", "none", "any")  # labels that also begin a phrase: "no answer"
_AFTER_DETERMINER = re.compile(rf"{_AFTER_LETTER.pattern}|\s*(?:\(|[-–—]\s)")
_MOST_LISTED = 10  # labels on each side of one; a reply that repeats itself lists thousands
_NONE_OF = re.compile(r"\b(?:neither|none\s+of|weder)\s+[(\[\"']*\Z", re.IGNORECASE)
_LIST_GAP = re.compile(r"[)\]\"']*\s*(?:,\s*)?(?:and|or|nor|,)\s*[(\[\"']*", re.IGNORECASE)
_SUBJECT = re.compile(
    r"[)\]\"']*\s+(?:is|was)\b(?!\s+(?:the\s+|my\s+)?(?:\w+ly\s+)?(?:right|correct|best|true|answer|choice))",
    re.IGNORECASE,
)


class Choice(FieldCheck):
    r"""The reply chooses the label of the row out of `labels` (default: the letters A to J), and no other.

    It reads "B", "(B)", "B.", "B) Paris", "Answer: B", `\boxed{B}` and "The answer is B". Denied labels ("not spam"),
    the article "A" and the pronoun "I" are no choices. A reply that chooses two labels, or none, earns 0.
    """

    must = "choose one label alone,"
    labels: tuple[str, ...] = LETTERS

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        keys = [key_of(label) for label in labels]
        if len(labels) < 2 or not all(keys) or len(set(keys)) < len(keys):
            raise ValueError("needs at least two labels that differ in more than case and white space")
        return labels

    def unfit(self, text: str) -> str | None:
        if key_of(text) in map(key_of, self.labels):
            return None
        return (
            f"the check {self.name!r} needs one of its labels ({', '.join(self.labels)}) in the field "
            f"{self.field!r}, but found {text[:80]!r}: list all labels under `labels`"
        )

    def matches(self, text: str, reply: str) -> bool:
        return chosen(reply, self.labels) == key_of(text)


def chosen(reply: str, labels: Sequence[str]) -> str | None:
    """Give the label that a reply chooses, in lower case; None if it chooses none, or more than one."""
    text = re.sub(r"</?[a-zA-Z][^<>\n]*>", " ", typed(reply[-_LONGEST_CHARS:]))
    text = re.sub(r"(\*{1,3}|`|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text).strip()
    keys = {key_of(label) for label in labels}
    for layer in without_edges(text):
        if key_of(layer) in keys:
            return key_of(layer)
    letters = [label for label in labels if len(label) == 1 and label.isascii() and label.isalpha()]
    if heading := re.match(r"[(\[]?([A-Za-z])(?:[)\].:](?=\s|\Z)|\s*\n)", text):
        rest = text[heading.end() :].strip()
        if heading.group(1).upper() in letters and not _other_choice(rest, heading.group(1), labels):
            return key_of(heading.group(1))
    mentions = _mentions(text, labels)
    marked = [_at(text, mark.end(), mentions) for mark in _MARK.finditer(text)]
    if found := [each for each in marked if each is not None]:
        return found[-1] or None
    return _mentioned(text, mentions)


def _other_choice(rest: str, letter: str, labels: Sequence[str]) -> bool:
    """Whether the text behind "B. " chooses again: "B. No, the answer is C"."""
    mentions = _mentions(rest, labels)
    again = [_at(rest, mark.end(), mentions) for mark in _MARK.finditer(rest)]
    return any(each not in (None, key_of(letter)) for each in again) or bool(re.match(r"[A-Z][.):](?:\s|\Z)", rest))


def _at(text: str, start: int, mentions: _Mentions) -> str | None:
    """Give the label at a place of the text, "" if two are offered there or it is denied, None if there is none."""
    found = next((each for each in mentions if each[0] == start), None)
    if found is None:
        return None
    in_phrase = (len(found[2]) == 1 and found[2].isalpha()) or found[2] in _DETERMINERS
    if in_phrase and not _AFTER_LETTER.match(text[found[1] :]):
        return None
    joined = re.match(
        r"[)\]\"'}$]*\s*(?:,|/|&|\b(?:and|or)\b|或|和)\s*(?:maybe\s+|perhaps\s+|possibly\s+|even\s+)?(?:option\s+|choice\s+)?[(\[\"']*",
        text[found[1] :],
    )
    other = joined and any(each[0] == found[1] + joined.end() and each[2] != found[2] for each in mentions)
    denied = CLAIM_DENIED.search(text[max(0, start - _NEAR_CHARS) : start]) or _DENIED.match(text[found[1] :])
    return "" if other or denied else found[2]


def _mentioned(text: str, mentions: _Mentions) -> str | None:
    """Give the one label that the text names without denying it."""
    offered, named = set(), set()
    for index, (start, end, key) in enumerate(mentions):
        before, after = text[max(0, start - _NEAR_CHARS) : start], text[end : end + _NEAR_CHARS]
        letter = len(key) == 1 and key.isascii() and key.isalpha()
        if key in _DETERMINERS and not _AFTER_DETERMINER.match(after):
            continue
        if letter and (not text[start].isupper() or not _AFTER_LETTER.match(after) or _SUBJECT.match(after)):
            continue
        sentence = re.split(r"(?<=[.!?;,。])\s|\n", before)[-1]
        if (
            _NEGATED.search(sentence)
            or CLAIM_DENIED.search(sentence)
            or _DENIED.match(after)
            or _denied_with_others(text, index, mentions)
            or re.match(r"[^.!\n。]*[?？]", after)
        ):
            continue
        named.add(key)
        if not letter or _BEFORE_LETTER.search(before):
            offered.add(key)
    return next(iter(offered)) if len(offered) == 1 and named == offered else None


def _denied_with_others(text: str, index: int, mentions: _Mentions) -> bool:
    """Whether a label stands in a list that is denied as a whole: "neither A, B nor C", "A and B are wrong"."""
    first = last = index
    while (
        index - first < _MOST_LISTED
        and first > 0
        and _LIST_GAP.fullmatch(text[mentions[first - 1][1] : mentions[first][0]])
    ):
        first -= 1
    while (
        last - index < _MOST_LISTED
        and last + 1 < len(mentions)
        and _LIST_GAP.fullmatch(text[mentions[last][1] : mentions[last + 1][0]])
    ):
        last += 1
    before = text[max(0, mentions[first][0] - _NEAR_CHARS) : mentions[first][0]]
    return first < last and bool(_NONE_OF.search(before) or _DENIED.match(text[mentions[last][1] :]))


def _mentions(text: str, labels: Sequence[str]) -> _Mentions:
    """List (start, end, key) of all labels in the text as whole words; of overlapping ones, the longest."""
    words = sorted({key_of(label) for label in labels}, key=len, reverse=True)
    patterns = []
    for word in words:
        inner = r"[\s_]+".join(map(re.escape, word.split()))
        edges = [
            "" if re.match(f"[{SPACELESS_RANGES}]", end) else rf"[^\W{SPACELESS_RANGES}]" for end in (word[0], word[-1])
        ]
        before = rf"(?<!{edges[0]})(?<!-)(?<![\d]\.)" if edges[0] else ""
        after = rf"(?!{edges[1]}|-\w|[.,]\d|'\w|%)" if edges[1] else ""
        patterns.append(before + inner + after)
    found = re.finditer("|".join(patterns), text, re.IGNORECASE)
    return [(each.start(), each.end(), key_of(each.group())) for each in found]


def key_of(label: str) -> str:
    """The form in which labels are compared: without case, and with single spaces, also for underscores."""
    return " ".join(typed(label).casefold().replace("_", " ").split())
