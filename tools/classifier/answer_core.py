"""The core of a sentence reference: the part of the sentence that a short answer would consist of.

This module only compares texts. It ranks the parts of a reference by what they add to the question, by what they share
with the reply, by numbers and names, and by what the cores of earlier rows looked like. The caller then asks the
reward which of them it pays for.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+(?:[.,'’:/-][^\W_]+)*%?", re.UNICODE)
NUMBER = re.compile(r"[-+]?\d[\d,.]*")
_FUNCTION_WORDS = (
    "a an and answer are as at be but by for from has have i in is it its my of on or so than that the their they this "
    "to was were which who with you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())  # words that answer nothing by themselves
ARTICLES = frozenset(["a", "an", "the"])
MARKERS = ("####", "answer is", "Answer:", "=")  # the answer follows
LONGEST_CORE = 4  # words, without an article
LAST_WORDS = 40  # words at the end of a reference that are searched, since answers stand near the end

# Weights of the ranking, tuned on rewritten references of the benchmark's tuned domains.
SHARED, NUMERIC, NAMED, WHOLE, LATE, SHAPED = 3.0, 1.5, 1.0, 0.6, 0.5, 1.5


@dataclass(frozen=True)
class Shape:
    """What a core looks like, and which word stands before it."""

    kind: str  # number, name or words
    words: int
    article: bool
    before: str  # the word before the core, "" at the start


class CoreBook:
    """Counts of what the cores of earlier rows looked like."""

    def __init__(self) -> None:
        self.shapes: Counter[Shape] = Counter()

    def note(self, reference: str, core: str) -> None:
        """Remember a core that earned full reward."""
        at = reference.find(core)
        if core and at >= 0 and core != reference.strip():
            self.shapes[_shape_of(reference, at, at + len(core))] += 1

    def likely(self, reference: str, question: str, reply: str = "") -> list[str]:
        """List the parts of a sentence reference that may be its core, likeliest first."""
        tails = [
            tail.strip().rstrip(".")
            for marker in MARKERS
            for _, found, tail in [reference.rpartition(marker)]
            if found and tail.strip()
        ]
        asked = set(words_of(question))
        words = list(WORD.finditer(reference))[-LAST_WORDS:]
        scored: list[tuple[float, int, str]] = []
        for first in range(len(words)):
            for size in range(1, min(LONGEST_CORE, len(words) - first) + 1):
                start, end = words[first].start(), words[first + size - 1].end()
                if _may_be_core([word.group().lower() for word in words[first : first + size]], asked):
                    score = self._score(reference, words, first, size, asked, reply)
                    scored.append((-score, start, reference[start:end]))
        return list(dict.fromkeys([*tails, *(text for _, _, text in sorted(scored))]))

    def _score(
        self, reference: str, words: Sequence[re.Match[str]], first: int, size: int, asked: set[str], reply: str
    ) -> float:
        start, end = words[first].start(), words[first + size - 1].end()
        shape = _shape_of(reference, start, end)
        plain = size - shape.article
        score = LATE * (first + size) / len(words) - 0.1 * size
        bare = reference[words[first + shape.article].start() : end]
        if re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", reply, re.IGNORECASE):
            score += SHARED + 0.3 * plain
        if shape.kind == "number":
            score += NUMERIC if plain == 1 else 0.5 * NUMERIC
        if shape.kind == "name" and start > 0:
            score += NAMED + 0.2 * plain
        beside = [words[i].group().lower() for i in (first - 1, first + size) if 0 <= i < len(words)]
        alone = FUNCTION_WORDS.union(asked).issuperset(beside)
        if alone and not re.search(r"[,;]", reference[start:end]):
            score += WHOLE
        best = max((_likeness(shape, known) for known in self.shapes), default=0.0)
        return score + SHAPED * best - (0.2 if shape.article else 0.0)


def words_of(text: str) -> list[str]:
    """Split a text into its words in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def shares_most(reply: str, reference: str, question: str) -> bool:
    """Say whether the reply holds more than half of the words that the reference adds to the question.

    For a sentence whose core is not known, this tells whether the reply may state the answer.
    """
    new = _new_words(reference, question)
    return 2 * len(new.intersection(words_of(reply))) > len(new)


def shared_runs(reply: str, reference: str, question: str) -> list[tuple[int, int]]:
    """Find the parts of the reply whose words are in the reference and not in the question.

    If the reply is right, its own answer is among them.

    Returns:
        Start and end of each part as character offsets, longest part first.
    """
    known = _new_words(reference, question)
    runs: list[tuple[int, int]] = []
    for word in WORD.finditer(reply):
        if word.group().lower() not in known:
            continue
        if runs and not WORD.search(reply, runs[-1][1], word.start()):
            runs[-1] = (runs[-1][0], word.end())
        else:
            runs.append(word.span())
    return sorted(runs, key=lambda run: run[0] - run[1])


def _new_words(reference: str, question: str) -> set[str]:
    """Words that the reference adds to the question, without function words."""
    return set(words_of(reference)) - set(words_of(question)) - FUNCTION_WORDS


def _shape_of(reference: str, start: int, end: int) -> Shape:
    """Shape of the characters start..end of the reference."""
    words = WORD.findall(reference[start:end])
    article = len(words) > 1 and words[0].lower() in ARTICLES
    own = words[article:]
    kind = "name" if own and all(word[:1].isupper() for word in own) else "words"
    if NUMBER.search(reference[start:end]):
        kind = "number"
    return Shape(kind, len(own), article, (["", *words_of(reference[:start])])[-1])


def _likeness(one: Shape, other: Shape) -> float:
    """Likeness of two shapes from 0 to 1: the kind counts most, then the word before, then the length."""
    if one.kind != other.kind:
        return 0.0
    score = 0.4 + 0.2 * (one.words == other.words) + 0.3 * (one.before == other.before)
    return score + 0.1 * (one.article == other.article)


def _may_be_core(words: Sequence[str], asked: set[str]) -> bool:
    """Say whether the words begin and end in a content word, articles aside, and none of them is in the question."""
    own = words[1:] if len(words) > 1 and words[0] in ARTICLES else words
    return not ({own[0], own[-1]} & FUNCTION_WORDS or asked.intersection(own))
