"""The places where a failing reply's answer may stand, and the content repair: the reference in that place.

This module only compares texts; it asks no reward. The places are ranked: slots of layouts known to be good,
structures that show where their answer stands, replies that consist of an answer only, then likeness to the reference.
"""

import re
from collections.abc import Sequence

from nslora.tools.classifier.answer_core import FUNCTION_WORDS, NUMBER, WORD, words_of
from nslora.tools.classifier.answer_lines import mark_of, marked, marked_block, several
from nslora.tools.classifier.layouts import Case, Layout, Span, escape, in_case, number_in, opens_json

LONG_REPLY_WORDS = 6
# Structures that show where their answer stands; group 1 can be replaced without breaking the structure.
STRUCTURES = (
    re.compile(r'^\s*\{\s*"[^"]*"\s*:\s*"((?:[^"\\]|\\.)+)"\s*\}\s*$'),
    re.compile(r"^\s*<(?:\w+)>([^<>]+)</\w+>\s*$"),
    re.compile(r"^\s*[-*•]\s+(.+?)\s*$"),
    re.compile(r"^\s*\w+:\s+(.+?)\s*$"),
    re.compile(r"(?i)\banswer is:?\s+([^.!?\n]+)"),
    re.compile(r"(?<!#)####[ \t]*([^\s#][^\n#]*?)\s*\Z"),  # GSM8K's mark; a heading has text below it
    re.compile(r"\\boxed\{([^{}]+)\}"),
)
# A reply with one of these words is a sentence around its answer.
SENTENCE_WORDS = frozenset(["answer", "are", "has", "have", "i", "is", "it", "there", "was", "were", "you"])


def spans(reply: str, core: str, question: str, layouts: Sequence[Layout], limit: int = 3) -> list[Span]:
    """Find the parts of a reply that may be its answer.

    Args:
        reply: The failing reply.
        core: The right answer, for its length and kind.
        question: The row's question.
        layouts: Layouts known to be good.
        limit: Most spans to return.

    Returns:
        Spans, best first. For a blank reply, its whole length: an answer would stand there.
    """
    if not reply.strip():
        return [Span(0, len(reply), framed=True)]
    slots = [layout.slot(reply, question) for layout in layouts if not layout.bare]
    matches = [match for structure in STRUCTURES if (match := structure.search(reply))]
    slots += [Span(*match.span(1), framed=True) for match in matches]
    found = [slot for slot in slots if slot is not None and _holds_an_answer(slot.of(reply), core)]
    if several(core) and (block := marked_block(reply)):
        found.insert(0, Span(*block, framed=True))
    if _is_answer_only(reply, core):
        found.append(Span(0, len(reply)).trimmed(reply))
    found = list(dict.fromkeys(found))
    for span in _by_likeness(reply, core, question):
        if len(found) >= limit:
            break
        if not any(_overlap(span, other) > 0.5 for other in found if not other.framed):
            found.append(span)
    return found[:limit]


def replace(reply: str, span: Span, core: str, case: Case = "as is") -> str | None:
    """Content repair: put the core in place of the span, in the span's case, marks and escaping.

    Args:
        reply: The failing reply.
        span: The part to replace.
        core: The right answer.
        case: Case of the known layout, for a span without letters.

    Returns:
        The repaired reply, or None if the span is more than half of a long reply and no known layout is around it:
        the repair would change the form too.
    """
    old = span.of(reply)
    long = len(WORD.findall(reply)) > LONG_REPLY_WORDS
    if long and not span.framed and len(old) * 2 > len(reply.strip()):
        return None
    if any(letter.isalpha() for letter in old):
        case = _case_of(reply, old)
    text = in_case(marked(core.strip(), mark_of(old)) if several(core) else core.strip(), case)
    if opens_json(reply) and reply[: span.start].count('"') % 2:
        text = escape(text)
    return reply[: span.start] + text + reply[span.end :]


def _case_of(reply: str, part: str) -> Case:
    """Return "upper" for a part in capitals, "lower" if the whole reply is in small letters: case belongs to form."""
    if part.isupper() and sum(letter.isalpha() for letter in part) > 1:
        return "upper"
    return "lower" if reply.islower() and part.islower() else "as is"


def _holds_an_answer(filling: str, core: str) -> bool:
    """Say whether a slot holds about as many words and lines as the core.

    A layout may be open to one side, and text that continues after the answer is a fault of form.
    """
    return _short_enough(filling, core) and ("\n" in core or "\n" not in filling)


def _short_enough(text: str, core: str) -> bool:
    return len(WORD.findall(text)) <= max(LONG_REPLY_WORDS, 2 * len(WORD.findall(core)))


def _is_answer_only(reply: str, core: str) -> bool:
    """Say whether a reply is an answer and nothing else: no longer than answers are, and no word around it."""
    text, core = reply.strip(), core.strip()
    return not (
        not WORD.search(text)
        or len(WORD.findall(reply)) > max(LONG_REPLY_WORDS, 2 * len(set(words_of(core))))
        or SENTENCE_WORDS.intersection(words_of(reply)).difference(words_of(core))
        or (several(text) and not several(core))
        or (text[-1:] in ".!?" and core[-1:] not in ".!?")
        or (text[:1] in "-*•{[#<\"'(" and core[:1] != text[:1])
        or (core[:1] in "{[" and text[:1] != core[:1])  # the core has a form of its own
    )


def _by_likeness(reply: str, core: str, question: str) -> list[Span]:
    """Runs of about as many words as the core has, the most alike first (see `_likeness`)."""
    words = list(WORD.finditer(reply))
    core_words = max(1, len(WORD.findall(core)))
    asked = set(words_of(question))
    numeric = bool(NUMBER.search(core)) and bool(NUMBER.search(reply))
    scored: list[tuple[float, Span]] = []
    for size in sorted({max(1, core_words - 1), core_words, core_words + 1}):
        for first in range(len(words) - size + 1):
            span = Span(words[first].start(), words[first + size - 1].end())
            text = span.of(reply)
            inside = [word.group().lower() for word in words[first : first + size]]
            empty = FUNCTION_WORDS.issuperset(inside) and not _option_letters(text, core)
            if empty or (numeric and not NUMBER.search(text)):
                continue
            bonus = 0.05 * ((first + size) / len(words)) + (0.05 if size == core_words else 0.0)
            scored.append((_likeness(text, core, asked) + bonus, span))
    return [span for _, span in sorted(scored, key=lambda each: (-each[0], each[1].start))]


def _option_letters(text: str, core: str) -> bool:
    """Say whether both are single capitals, as in multiple choice; elsewhere "A" and "I" are words."""
    return all(len(each) == 1 and each.isupper() for each in (text, core.strip(" ().")))


def _likeness(text: str, core: str, asked: set[str]) -> float:
    """Likeness of a text to the core: 3 if equal, 2.5 for equal numbers, else by letters, kind, case and new words."""
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
    words = words_of(text)
    new = sum(word not in asked and word not in FUNCTION_WORDS for word in words) / max(1, len(words))
    return alike + same_type + same_case + 0.5 * (1.0 if _option_letters(text, core) else new)


def _pairs(text: str) -> set[str]:
    """Pairs of neighbouring characters."""
    return {text[i : i + 2] for i in range(max(1, len(text) - 1))}


def _overlap(one: Span, other: Span) -> float:
    """Shared characters as a share of the shorter span."""
    shared = min(one.end, other.end) - max(one.start, other.start)
    return max(0, shared) / max(1, min(one.end - one.start, other.end - other.start))
