"""What good replies look like around their answers: layouts, learnt by aligning them with their references.

Text work only; no reward is asked here. A layout is what stands before and after the reference in a reply that earned
full reward, with the case and the JSON escaping it was written in. `tools/classifier/answer_spans.py` finds where a
failing reply's own answer stands; `tools/classifier/attribution.py` puts the two together and asks the reward.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nslora.tools.classifier.answer_core import FUNCTION_WORDS, NUMBER, WORD, CoreBook
from nslora.tools.classifier.answer_lines import find_lines, lines_of, mark_of, marked, several, unmarked

if TYPE_CHECKING:
    from nslora.tools.rewards.score import Graded

Case = Literal["as is", "upper", "lower"]
CASES: tuple[Case, ...] = ("as is", "upper", "lower")
FRAMED_REPLIES = 40  # failing replies that are looked at for a frame they share
SHARED_BY = 3  # pairs
QUESTION = "\x00question\x00"  # stands for the row's own question in a layout; cannot occur in text


@dataclass(frozen=True)
class Span:
    """Characters start..end of a reply. `framed`: a known layout stands around it, so replacing it leaves the form."""

    start: int
    end: int
    framed: bool = False


@dataclass(frozen=True)
class Layout:
    """What stands around the answer in a good reply. mark: before each of its lines, where it has several."""

    prefix: str = ""
    suffix: str = ""
    case: Case = "as is"
    escaped: bool = False
    mark: str = ""

    @property
    def bare(self) -> bool:
        """Whether nothing stands around the answer."""
        return not self.prefix and not self.suffix and not self.mark

    def for_any(self, question: str) -> Layout:
        """The same layout with a mark in place of this row's question."""
        if not question:
            return self
        prefix, suffix = (part.replace(question, QUESTION) for part in (self.prefix, self.suffix))
        return Layout(prefix, suffix, self.case, self.escaped, self.mark)

    def wrap(self, core: str, question: str) -> str:
        """The core in this layout, with the row's own question where the layout restates one."""
        text = marked(escape(core) if self.escaped else core, self.mark)
        prefix, suffix = (part.replace(QUESTION, question) for part in (self.prefix, self.suffix))
        return prefix + in_case(text, self.case) + suffix

    def slot(self, reply: str, question: str) -> Span | None:
        """Where the answer stands in a reply of this layout; None where the reply is of another."""
        prefix, suffix = (part.replace(QUESTION, question).strip() for part in (self.prefix, self.suffix))
        text = reply.strip()
        if not text.startswith(prefix) or not text.endswith(suffix) or len(text) <= len(prefix) + len(suffix):
            return None
        offset = len(reply) - len(reply.lstrip())
        start, end = offset + len(prefix), offset + len(text) - len(suffix)
        inner = reply[start:end]
        if self.escaped and re.search(r'(?<!\\)"', inner):
            return None  # another field or another shape of JSON begins inside
        return Span(start + len(inner) - len(inner.lstrip()), end - (len(inner) - len(inner.rstrip())), framed=True)

    def explains(self, reply: str, question: str) -> bool:
        """Whether the reply could have been written in this layout."""
        slot = self.slot(reply, question)
        inner = "" if slot is None else reply[slot.start : slot.end]
        return slot is not None and inner == in_case(inner, self.case)


def escape(text: str) -> str:
    """The text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def unescape(text: str) -> str:
    """The text with its JSON escapes resolved; what is no valid escape stays as it came."""
    return re.sub(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})', lambda match: str(json.loads(f'"{match.group()}"')), text)


def in_case(text: str, case: Case) -> str:
    return {"as is": text, "upper": text.upper(), "lower": text.lower()}[case]


def learn_layouts(known_good: Iterable[Graded], limit: int = 3) -> list[Layout]:
    """Layouts of replies that earned full reward, those that explain the most replies first, then the shortest.

    Each reply is aligned with its reference, or, for a reference that is a sentence, with the longest run of its
    words that the reply holds. Numbers show no case: a layout in capitals that explains them too goes first.
    """
    goods = [good for good in known_good if good.example.reference is not None]
    counts: Counter[Layout] = Counter()
    for good in goods:
        layout = align(good.reply, good.example.reference or "")
        if layout is not None:
            counts[layout.for_any(good.example.question)] += 1

    def explained(layout: Layout) -> int:
        return sum(layout.explains(good.reply, good.example.question) for good in goods)

    def rank(layout: Layout) -> tuple[int, bool, int, int]:
        return -explained(layout), layout.case == "as is", -counts[layout], len(layout.prefix) + len(layout.suffix)

    return sorted(counts, key=rank)[:limit]


class LayoutBook:
    """Layouts to try, those that proved good on earlier rows first, and the frame of the references before them.

    Where none was learnt, frames that the failing replies share and the reference itself in three cases are tried; a
    guess that failed on `PATIENCE` rows and never worked is tried no more.
    """

    PATIENCE = 3

    def __init__(
        self, known_good: Sequence[Graded], limit: int, failing: Sequence[str] = (), style: Layout | None = None
    ) -> None:
        learnt = list(dict.fromkeys([*([style] if style else []), *learn_layouts(known_good, limit)]))
        bare = [Layout(case=case) for case in (CASES if not learnt else CASES[:1])]
        guesses = [*(shared_frames(failing) if not learnt else []), *bare]
        self.layouts = [*learnt, *(layout for layout in guesses if layout not in learnt)]
        self.limit = limit
        self.hits = dict.fromkeys(self.layouts, 0)
        self.misses = dict.fromkeys(self.layouts, 0)
        self._bare_hits = self._bare_misses = 0
        self.cores = CoreBook()

    def candidates(self) -> list[Layout]:
        """Layouts for the next row, best first."""
        alive = [layout for layout in self.layouts if self.hits[layout] or self.misses[layout] < self.PATIENCE]
        return sorted(alive, key=lambda layout: -self.hits[layout])[: self.limit]

    @property
    def bare_cores_work(self) -> bool:
        """Whether a reference without its function words may still earn full reward here."""
        return self._bare_hits > 0 or self._bare_misses < self.PATIENCE

    def note_bare_core(self, worked: bool) -> None:
        """Remember a row where the whole reference or its bare core earned full reward."""
        self._bare_hits += worked
        self._bare_misses += not worked

    def note(self, layout: Layout, worked: bool) -> None:
        """Remember whether the reference in this layout earned a row full reward."""
        counts = self.hits if worked else self.misses
        counts[layout] += 1


def align(reply: str, reference: str) -> Layout | None:
    """The layout of a good reply around its reference; None where the reply does not hold it."""
    found = find_lines(reply, lines_of(reference)) if several(reference) else None
    if found is not None:
        return Layout(reply[: found.start()], reply[found.end() :], mark=mark_of(found.group()))
    for core in [reference.strip(), *word_runs(reference)]:
        for case in CASES:
            for escaped in (False, True):
                text = in_case(escape(core) if escaped else core, case)
                if not core or (escaped and text == in_case(core, case)):
                    continue
                at = find_bounded(reply, text)
                if at is not None:
                    prefix, suffix = reply[:at], reply[at + len(text) :]
                    quoted = prefix.lstrip().startswith(("{", "[")) and prefix.endswith('"')
                    return Layout(prefix, suffix, case if _cased(core) else "as is", quoted)
    return None


def shared_frames(replies: Sequence[str], limit: int = 2) -> list[Layout]:
    """What pairs of replies share before and after their answers, the most frequent first; cut at whole words.

    Replies in the right form with wrong answers show the form, before any reply was right.
    """
    texts = [text.strip() for text in dict.fromkeys(replies)][:FRAMED_REPLIES]
    counts: Counter[Layout] = Counter()
    for one, other in itertools.combinations(texts, 2):
        prefix = re.sub(r"\w+$", "", common_start(one, other))
        suffix = re.sub(r"^\w+", "", common_start(one[::-1], other[::-1])[::-1])
        if (prefix.strip() or suffix.strip()) and len(prefix) + len(suffix) < min(len(one), len(other)):
            quoted = prefix.startswith(("{", "[")) and prefix.endswith('"')
            counts[Layout(prefix, suffix, escaped=quoted)] += 1
    return [layout for layout, count in counts.most_common(limit) if count >= SHARED_BY]


def common_start(one: str, other: str) -> str:
    """The text with which both begin."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def core_of(good: Graded) -> str | None:
    """The part of its reference that a good reply holds; None where that cannot be told."""
    layout = None if good.example.reference is None else align(good.reply, good.example.reference)
    if layout is None:
        return None
    core = good.reply[len(layout.prefix) : len(good.reply) - len(layout.suffix)]
    at = (good.example.reference or "").lower().find(core.lower())
    return None if at < 0 else (good.example.reference or "")[at : at + len(core)]


def _cased(text: str) -> bool:
    return text.upper() != text.lower()


def find_bounded(text: str, part: str) -> int | None:
    """Where the part stands in the text as whole words, the last such place; None where it does not."""
    at = text.rfind(part)
    while at >= 0:
        end = at + len(part)
        before = part[:1].isalnum() and _in_word(text[at - 1 : at])
        after = part[-1:].isalnum() and _in_word(text[end : end + 1])
        if not before and not after:
            return at
        at = text.rfind(part, 0, end - 1)
    return None


def _in_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


def word_runs(reference: str, longest: int = 12) -> list[str]:
    """Runs of whole words of a reference, longest first; none where it is a single word, or where a run is only
    function words. A long reference gives the runs of its last `longest` words, where answers stand."""
    words = list(WORD.finditer(reference))[-longest:]
    runs: list[str] = []
    for size in range(len(words), 0, -1):
        for first in range(len(words) - size, -1, -1):
            run = words[first : first + size]
            if any(word.group().lower() not in FUNCTION_WORDS for word in run):
                runs.append(reference[run[0].start() : run[-1].end()])
    return [run for run in runs if run != reference.strip()]


def states(reply: str, reference: str) -> bool:
    """Whether the reply states the reference, whatever the case, as whole words; numbers by value.

    Words without content at either end of the reference are not asked for: "1911" states "in 1911".
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
    """The text from its first to its last word of content; the text itself where it has none."""
    words = [word for word in WORD.finditer(text) if word.group().lower() not in FUNCTION_WORDS]
    return text[words[0].start() : words[-1].end()] if words else text.strip()


def number_in(text: str) -> float | None:
    """The only number of a text; None where there is none or several."""
    found = NUMBER.findall(text)
    return _as_number(found[0]) if len(found) == 1 else None


def _as_number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").rstrip("."))
    except ValueError:
        return None
