"""Where a failing reply's answer stands, and the content repair: the reference in its place.

Text work only; no reward is asked here. Spans are ranked: slots of layouts known to be good, structures that show by
themselves where the answer stands, replies that are an answer and nothing else, then likeness to the reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nslora.tools.classifier.answer_core import FUNCTION_WORDS, NUMBER, WORD
from nslora.tools.classifier.answer_lines import mark_of, marked, marked_block, several
from nslora.tools.classifier.layouts import Case, Layout, Span, escape, in_case, number_in

LONG_REPLY_WORDS = 6
# Answers in a structure that shows by itself where they stand; what is replaced inside leaves the structure.
STRUCTURES = (
    re.compile(r'^\s*\{\s*"[^"]*"\s*:\s*"((?:[^"\\]|\\.)+)"\s*\}\s*$'),
    re.compile(r"^\s*<(?:\w+)>([^<>]+)</\w+>\s*$"),
    re.compile(r"^\s*[-*•]\s+(.+?)\s*$"),
    re.compile(r"^\s*\w+:\s+(.+?)\s*$"),
    re.compile(r"(?i)\banswer is:?\s+([^.!?\n]+)"),
    re.compile(r"(?<!#)####[ \t]*([^\s#][^\n#]*?)\s*\Z"),  # GSM8K's mark; a heading has text below it
    re.compile(r"\\boxed\{([^{}]+)\}"),
)
# A reply that holds one of these is a sentence around its answer.
SENTENCE_WORDS = frozenset(["answer", "are", "has", "have", "i", "is", "it", "there", "was", "were", "you"])


def spans(reply: str, core: str, question: str, layouts: Sequence[Layout], limit: int = 3) -> list[Span]:
    """Stretches of the reply that may hold its answer, best first: slots of known layouts, then by likeness.

    In a reply without text that is where the answer would stand.
    """
    if not reply.strip():
        return [Span(0, len(reply), framed=True)]
    slots = [layout.slot(reply, question) for layout in layouts if not layout.bare]
    slots = [_answer_slot(slot, reply, core) for slot in [*slots, *_structural_slots(reply)]]
    block = marked_block(reply) if several(core) else None
    slots = [Span(*block, framed=True), *slots] if block else slots
    found: list[Span] = []
    for slot in [*slots, _bare_slot(reply, core)]:
        if slot is not None and (slot.start, slot.end) not in {(span.start, span.end) for span in found}:
            found.append(slot)
    for span in _by_likeness(reply, core, question):
        if len(found) >= limit:
            break
        if not any(_overlap(span, other) > 0.5 for other in found if not other.framed):
            found.append(span)
    return found[:limit]


def _structural_slots(reply: str) -> list[Span]:
    matches = (structure.search(reply) for structure in STRUCTURES)
    return [Span(match.start(1), match.end(1), framed=True) for match in matches if match]


def _answer_slot(slot: Span | None, reply: str, core: str) -> Span | None:
    """The slot, where what fills it is about as long as answers are: a layout may be open to one side, and text
    that runs on past the answer is a fault of form."""
    if slot is None:
        return None
    filling = reply[slot.start : slot.end]
    fits = len(WORD.findall(filling)) <= max(LONG_REPLY_WORDS, 2 * len(WORD.findall(core)))
    return slot if fits and ("\n" in core or "\n" not in filling) else None


def _bare_slot(reply: str, core: str) -> Span | None:
    """The whole reply, where it is an answer and nothing else: no longer than answers are, no word around it."""
    words = [word.lower() for word in WORD.findall(reply)]
    own = {word.lower() for word in WORD.findall(core)}
    extra = [word for word in words if word not in own]
    text = reply.strip()
    if not words or len(words) > max(LONG_REPLY_WORDS, 2 * len(own)) or SENTENCE_WORDS & set(extra):
        return None
    if several(text) and not several(core):
        return None
    if text[-1:] in ".!?" and core.strip()[-1:] not in ".!?":
        return None
    if text[:1] in "-*•{[#<\"'(" and core.strip()[:1] != text[:1]:
        return None
    if core.strip()[:1] in "{[" and text[:1] != core.strip()[:1]:  # the core has a form of its own
        return None
    start = len(reply) - len(reply.lstrip())
    return Span(start, start + len(text), framed=True)


def _by_likeness(reply: str, core: str, question: str) -> list[Span]:
    """Windows of about as many words as the core has, the likest first (see `_likeness`)."""
    words = list(WORD.finditer(reply))
    core_words = max(1, len(WORD.findall(core)))
    asked = {word.lower() for word in WORD.findall(question)}
    numeric = bool(NUMBER.search(core)) and bool(NUMBER.search(reply))
    scored: list[tuple[float, int, int]] = []
    for size in sorted({max(1, core_words - 1), core_words, core_words + 1}):
        for first in range(len(words) - size + 1):
            start, end = words[first].start(), words[first + size - 1].end()
            inside = [word.group().lower() for word in words[first : first + size]]
            empty = FUNCTION_WORDS.issuperset(inside) and not _option_letters(reply[start:end], core)
            if empty or (numeric and not NUMBER.search(reply[start:end])):
                continue
            place = (first + size) / len(words)
            bonus = 0.05 * place + (0.05 if size == core_words else 0.0)
            scored.append((_likeness(reply[start:end], core, asked) + bonus, start, end))
    scored.sort(key=lambda item: (-item[0], item[1]))
    return [Span(start, end) for _, start, end in scored]


def _option_letters(text: str, core: str) -> bool:
    """Whether both are capital letters alone, as answers to multiple choice: "A" and "I" are words only elsewhere."""
    return all(len(each) == 1 and each.isupper() for each in (text, core.strip(" ().")))


def _likeness(text: str, core: str, asked: set[str]) -> float:
    """How like an answer of the core's kind: 3 where it is the core, else letters, number type, case, and new words."""
    plain, wanted = text.lower(), core.strip().lower()
    if plain == wanted:
        return 3.0
    number = number_in(text)
    if number is not None and number == number_in(core):
        return 2.5
    pairs, wanted_pairs = _pairs(plain), _pairs(wanted)
    alike = 2 * len(pairs & wanted_pairs) / max(1, len(pairs) + len(wanted_pairs))
    same_type = 0.5 if bool(NUMBER.search(text)) == bool(NUMBER.search(core)) else 0.0
    same_case = 0.2 if text[:1].isupper() == core.strip()[:1].isupper() else 0.0
    words = [word.lower() for word in WORD.findall(text)]
    new = (
        1.0
        if _option_letters(text, core)
        else sum(word not in asked and word not in FUNCTION_WORDS for word in words) / max(1, len(words))
    )
    return alike + same_type + same_case + 0.5 * new


def _pairs(text: str) -> set[str]:
    return {text[i : i + 2] for i in range(max(1, len(text) - 1))}


def _overlap(one: Span, other: Span) -> float:
    """Shared characters as a share of the shorter span."""
    shared = min(one.end, other.end) - max(one.start, other.start)
    return max(0, shared) / max(1, min(one.end - one.start, other.end - other.start))


def replace(reply: str, span: Span, core: str, case: Case = "as is") -> str | None:
    """Content repair: the core in place of the span, in the span's case and escaping; all else as it was.

    case: of the known layout, for a span without letters, which shows none.
    None where the span is more than half of a long reply and no known layout frames it: that would mend the form too.
    """
    long = len(WORD.findall(reply)) > LONG_REPLY_WORDS
    if long and not span.framed and (span.end - span.start) * 2 > len(reply.strip()):
        return None
    lettered = any(letter.isalpha() for letter in reply[span.start : span.end])
    lines = marked(core.strip(), mark_of(reply[span.start : span.end])) if several(core) else core.strip()
    text = in_case(lines, case_of(reply, span) if lettered else case)
    if reply.lstrip().startswith(("{", "[")) and reply[: span.start].count('"') % 2:
        text = escape(text)
    return reply[: span.start] + text + reply[span.end :]


def case_of(reply: str, span: Span) -> Case:
    """Upper where the span is, lower where the whole reply is: the case belongs to the form."""
    own = reply[span.start : span.end]
    if own.isupper() and sum(letter.isalpha() for letter in own) > 1:
        return "upper"
    return "lower" if reply.islower() and len(reply.strip()) > 0 and own.islower() else "as is"
