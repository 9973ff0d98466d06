"""Layouts: the text around the answer in replies that earned full reward, and in references (the reference style).

This module only compares texts. A layout is what stands before and after the reference in a good reply, with its case
and its JSON escaping. `tools/classifier/answer_spans.py` finds the answer inside a failing reply;
`tools/classifier/attribution.py` combines the two and asks the reward.

What nearly all references of a task share around their answers counts as form. Otherwise a styled reference would be
content as a whole: the style could never be missing alone, and a reply that lacks both would seem to lack content twice
as much as form.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nslora.tools.classifier.answer_core import FUNCTION_WORDS, NUMBER, WORD, CoreBook
from nslora.tools.classifier.answer_lines import find_lines, lines_of, mark_of, marked, several, unmarked
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example

Case = Literal["as is", "upper", "lower"]
CASES: tuple[Case, ...] = ("as is", "upper", "lower")
COMPARED_TEXTS = 40  # replies, or references, that are compared in pairs to find what they share
LEAST_PAIRS = 3  # pairs that must share a layout
LONGEST_RUN = 12  # words of a reference that are searched in a reply
QUESTION = "\x00question\x00"  # stands for the row's own question in a layout; cannot occur in text
BARE_CORE = "bare core"  # a guess of `LayoutBook`: the reference earns full reward without its outer function words


@dataclass(frozen=True)
class Span:
    """Characters start..end of a reply.

    Attributes:
        framed: Whether a known layout stands around the span, so that the form survives if the span is replaced.
    """

    start: int
    end: int
    framed: bool = False

    def of(self, text: str) -> str:
        """The characters of the span."""
        return text[self.start : self.end]

    def trimmed(self, text: str) -> "Span":
        """The span without the blanks at its ends; it counts as framed."""
        inner = self.of(text)
        start, end = self.start + len(inner) - len(inner.lstrip()), self.end - len(inner) + len(inner.rstrip())
        return Span(start, end, framed=True)


@dataclass(frozen=True)
class Layout:
    """The text around the answer in a good reply.

    Attributes:
        escaped: Whether the answer stands in a JSON string.
        mark: The mark before each line of an answer of several lines.
    """

    prefix: str = ""
    suffix: str = ""
    case: Case = "as is"
    escaped: bool = False
    mark: str = ""

    @property
    def bare(self) -> bool:
        """Whether nothing stands around the answer."""
        return not self.prefix and not self.suffix and not self.mark

    def for_any(self, question: str) -> "Layout":
        """The same layout with the placeholder `QUESTION` instead of this question."""
        prefix, suffix = (part.replace(question, QUESTION) for part in (self.prefix, self.suffix))
        return replace(self, prefix=prefix, suffix=suffix) if question else self

    def around(self, question: str) -> tuple[str, str]:
        """Prefix and suffix for a row with this question."""
        return self.prefix.replace(QUESTION, question), self.suffix.replace(QUESTION, question)

    def wrap(self, core: str, question: str) -> str:
        """Put an answer into this layout."""
        prefix, suffix = self.around(question)
        return prefix + in_case(marked(escape(core) if self.escaped else core, self.mark), self.case) + suffix

    def slot(self, reply: str, question: str) -> Span | None:
        """Find the answer in a reply of this layout; None if the reply has another layout."""
        prefix, suffix = (part.strip() for part in self.around(question))
        text = reply.strip()
        if not text.startswith(prefix) or not text.endswith(suffix) or len(text) <= len(prefix) + len(suffix):
            return None
        offset = len(reply) - len(reply.lstrip())
        span = Span(offset + len(prefix), offset + len(text) - len(suffix))
        if self.escaped and re.search(r'(?<!\\)"', span.of(reply)):
            return None  # another field or another shape of JSON begins inside
        return span.trimmed(reply)

    def explains(self, reply: str, question: str) -> bool:
        """Say whether the reply has this layout, case included."""
        slot = self.slot(reply, question)
        return slot is not None and slot.of(reply) == in_case(slot.of(reply), self.case)


def escape(text: str) -> str:
    """Escape a text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def unescape(text: str) -> str:
    """Resolve JSON escapes; an invalid escape stays as it is."""
    return re.sub(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})', lambda match: str(json.loads(f'"{match.group()}"')), text)


def opens_json(text: str) -> bool:
    """Say whether a text begins like a JSON object or list."""
    return text.lstrip().startswith(("{", "["))


def in_case(text: str, case: Case) -> str:
    """Write a text in capitals, in small letters, or as it is."""
    return {"as is": text, "upper": text.upper(), "lower": text.lower()}[case]


def learn_layouts(known_good: Iterable[Graded], limit: int = 3) -> list[Layout]:
    """Learn layouts from replies that earned full reward.

    Each reply is aligned with its reference or, if the reply does not hold all of it, with the longest run of words of
    the reference that it does hold. Numbers show no case, so a layout in capitals that explains them goes first.

    Args:
        known_good: Replies with full reward; those without a reference are ignored.
        limit: Most layouts to return.

    Returns:
        Layouts that explain the most replies first, then the shortest.
    """
    goods = [good for good in known_good if good.example.reference is not None]
    counts: Counter[Layout] = Counter()
    for good in goods:
        layout = align(good.reply, good.example.reference or "")
        if layout is not None:
            counts[layout.for_any(good.example.question)] += 1

    def rank(layout: Layout) -> tuple[int, bool, int, int]:
        explained = sum(layout.explains(good.reply, good.example.question) for good in goods)
        return -explained, layout.case == "as is", -counts[layout], len(layout.prefix) + len(layout.suffix)

    return sorted(counts, key=rank)[:limit]


class LayoutBook:
    """The layouts to try on the next row: the reference style first, then learnt layouts, then guesses.

    Without a learnt layout, the guesses are what the failing replies share, and the reference itself in three cases. A
    guess that failed on `PATIENCE` rows and never worked is given up.
    """

    PATIENCE = 3

    def __init__(
        self, known_good: Sequence[Graded], limit: int, failing: Sequence[str] = (), style: Layout | None = None
    ) -> None:
        known = [*([style] if style else []), *learn_layouts(known_good, limit)]
        guesses = [Layout()] if known else [*shared_layouts(failing), *(Layout(case=case) for case in CASES)]
        self.layouts = list(dict.fromkeys([*known, *guesses]))
        self.limit = limit
        self.hits: Counter[Layout | str] = Counter()
        self.misses: Counter[Layout | str] = Counter()
        self.cores = cores_of(known_good)

    def candidates(self) -> list[Layout]:
        """Layouts for the next row, best first."""
        alive = [layout for layout in self.layouts if self.may_work(layout)]
        return sorted(alive, key=lambda layout: -self.hits[layout])[: self.limit]

    def may_work(self, guess: Layout | str) -> bool:
        """Say whether a layout, or `BARE_CORE`, has not been given up."""
        return self.hits[guess] > 0 or self.misses[guess] < self.PATIENCE

    def note(self, guess: Layout | str, worked: bool) -> None:
        """Remember whether a layout, or `BARE_CORE`, earned a row full reward."""
        (self.hits if worked else self.misses)[guess] += 1


def align(reply: str, reference: str) -> Layout | None:
    """Find the layout of a good reply around its reference; None if the reply does not hold the reference."""
    found = find_lines(reply, lines_of(reference)) if several(reference) else None
    if found is not None:
        return Layout(reply[: found.start()], reply[found.end() :], mark=mark_of(found.group()))
    for core, case, escaped in itertools.product([reference.strip(), *_word_runs(reference)], CASES, (False, True)):
        text = in_case(escape(core) if escaped else core, case)
        if not core or (escaped and text == in_case(core, case)):
            continue
        at = find_bounded(reply, text)
        if at is not None:
            cased = core.upper() != core.lower()
            return _layout(reply[:at], reply[at + len(text) :], case if cased else "as is")
    return None


def shared_layouts(texts: Sequence[str]) -> list[Layout]:
    """Find what pairs of texts share before and after their answers, cut at whole words.

    Replies in the right form with wrong answers show the form before any reply earned full reward.

    Returns:
        At most two layouts that `LEAST_PAIRS` pairs share, the most frequent first.
    """
    counts: Counter[Layout] = Counter()
    for pair in itertools.combinations([text.strip() for text in dict.fromkeys(texts)][:COMPARED_TEXTS], 2):
        prefix = re.sub(r"\w+$", "", _common_start(*pair))
        suffix = re.sub(r"^\w+", "", _common_start(pair[0][::-1], pair[1][::-1])[::-1])
        if (prefix.strip() or suffix.strip()) and len(prefix) + len(suffix) < min(map(len, pair)):
            counts[_layout(prefix, suffix)] += 1
    return [layout for layout, count in counts.most_common(2) if count >= LEAST_PAIRS]


def _common_start(one: str, other: str) -> str:
    """The characters with which both texts begin."""
    return "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _layout(prefix: str, suffix: str, case: Case = "as is") -> Layout:
    """A layout; its answer is escaped if the prefix opens a JSON string."""
    return Layout(prefix, suffix, case, opens_json(prefix) and prefix.endswith('"'))


def cores_of(known_good: Iterable[Graded]) -> CoreBook:
    """Remember which part of its reference each good reply holds."""
    book = CoreBook()
    for good in known_good:
        reference = good.example.reference or ""
        layout = align(good.reply, reference)
        if layout is not None:
            core = good.reply[len(layout.prefix) : len(good.reply) - len(layout.suffix)]
            at = reference.lower().find(core.lower())
            book.note(reference, reference[at : at + len(core)] if at >= 0 else "")
    return book


def find_bounded(text: str, part: str) -> int | None:
    """Find the last place at which a text holds the part as whole words; None if there is no such place."""
    if part not in text:
        return None
    before, after = r"(?<!\w)" * part[:1].isalnum(), r"(?!\w)" * part[-1:].isalnum()
    places = [found.start() for found in re.finditer(f"{before}(?={re.escape(part)}{after})", text)]
    return places[-1] if places else None


def _word_runs(reference: str) -> list[str]:
    """Runs of whole words among the last `LONGEST_RUN` words of a reference, longest first.

    The whole reference and runs of function words are left out.
    """
    words = list(WORD.finditer(reference))[-LONGEST_RUN:]
    runs: list[str] = []
    for size in range(len(words), 0, -1):
        for first in range(len(words) - size, -1, -1):
            run = words[first : first + size]
            if any(word.group().lower() not in FUNCTION_WORDS for word in run):
                runs.append(reference[run[0].start() : run[-1].end()])
    return [run for run in runs if run != reference.strip()]


def states(reply: str, reference: str) -> bool:
    """Say whether the reply states the reference as whole words, in any case; numbers are compared by value.

    Function words at either end of the reference may be missing: "1911" states "in 1911".
    """
    if several(reference) and find_lines(reply, lines_of(unmarked(reference))) is not None:
        return True
    core = without_function_words(reference).lower()
    if any(find_bounded(text.lower(), core) is not None for text in (reply, unescape(reply))):
        return True
    number = number_in(core)
    if number is None or core.strip(" .$€£%") != NUMBER.findall(core)[0].strip(".,"):
        return False
    return any(_as_number(found) == number for found in NUMBER.findall(reply))


def without_function_words(text: str) -> str:
    """The text from its first to its last content word; the text itself if it has no content word."""
    words = [word for word in WORD.finditer(text) if word.group().lower() not in FUNCTION_WORDS]
    return text[words[0].start() : words[-1].end()] if words else text.strip()


def number_in(text: str) -> float | None:
    """The only number of a text; None if the text has no number or several."""
    found = NUMBER.findall(text)
    return _as_number(found[0]) if len(found) == 1 else None


def _as_number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").rstrip("."))
    except ValueError:
        return None


LEAST_REFERENCES = 5  # different ones; fewer may begin alike by chance
STYLED_SHARE = 0.9  # of the references; a few without the style do not hide it
# A style has a mark at a word's edge, as in "**", "- " or "Reply:"; not " kg", "Yes, " or a full stop.
MARK = re.compile(r"(?<!\w)[^\w\s.!?,]|[^\w\s.!?,](?!\w)")
# A style may touch the answer at a space, a bracket, a quote, or the end of a clause. "2021-", ":30", "@ex.com" and a
# sign before a number are parts of answers.
OPENS, CLOSES = re.compile(r"(?:^|[\s*\"'`(\[{<>|~“«„=])\Z"), re.compile(r"\Z|[\s*\"`)\]}<>|~”»“=]|[.,;:!?'](?!\w)")


def reference_style_of(rows: Sequence[Example]) -> Layout | None:
    """Find what nearly all references have around their answers.

    References may restate their question. Fields of a JSON object that are equal in all rows count as form too. Marks
    before the lines of an answer are left out, since the classifier treats them as form anyway.

    Returns:
        The style, or None if the references share nothing that looks like form.
    """
    known = {row.reference.strip(): row.question for row in rows if row.reference and row.reference.strip()}
    pairs = list(known.items())[:COMPARED_TEXTS]
    if len(pairs) < LEAST_REFERENCES:
        return None
    plain, restated = [text for text, _ in pairs], [_with_placeholder(*pair) for pair in pairs]
    for layout in [*shared_layouts(plain), *(shared_layouts(restated) if restated != plain else [])]:
        answers = [text for pair in pairs if (text := _inside(*pair, layout)) is not None and not several(text)]
        if len(answers) >= STYLED_SHARE * len(pairs) and _is_form(layout):
            return replace(layout, case=_case_of(answers))
    if any(several(text) for text in known) or _case_of(list(known)) == "as is":
        return None
    return Layout(case="upper")


def without_reference_style(graded: Graded, style: Layout | None) -> Graded:
    """Replace the reference by the answer inside its style. The reward still takes the row with its own reference."""
    return graded if style is None else replace(graded, example=bare(graded.example, style))


def bare(example: Example, style: Layout | None) -> Example:
    """Replace the reference by the answer inside its style; a reference without the style stays as it is."""
    if style is None or example.reference is None:
        return example
    answer = _inside(example.reference.strip(), example.question, style)
    return example if answer is None else replace(example, reference=answer)


def _is_form(layout: Layout) -> bool:
    """Say whether the text around the answers looks like a style and not like a part of each answer."""
    apart = OPENS.search(layout.prefix) and CLOSES.match(layout.suffix)
    return bool(apart and MARK.search(layout.prefix + " " + layout.suffix))


def _with_placeholder(text: str, question: str) -> str:
    """Replace the question, as whole words, by the placeholder `QUESTION`."""
    return re.sub(rf"(?<!\w){re.escape(question)}(?!\w)", QUESTION, text) if question.strip() else text


def _case_of(texts: Sequence[str]) -> Case:
    """Return "upper" if all texts with letters are in capitals; small letters are no style, plain answers have them."""
    cased = [text for text in texts if text.upper() != text.lower()]
    return "upper" if len(cased) >= LEAST_REFERENCES and all(text == text.upper() for text in cased) else "as is"


def _inside(reference: str, question: str, style: Layout) -> str | None:
    """Return the answer inside a styled reference; None if the reference does not have the style."""
    slot = style.slot(reference, question)
    if slot is None:
        return None
    return unescape(slot.of(reference)) if style.escaped else slot.of(reference)
