"""The core of a reference that is a sentence: the stretch of it that a short answer would be.

Text work only. Stretches are ranked by what is new against the question, what the reply shares, numbers and names, and
what the cores of earlier rows looked like; the reward then says which one it pays for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+(?:[.,'’:/-][^\W_]+)*%?", re.UNICODE)
NUMBER = re.compile(r"[-+]?\d[\d,.]*")
# Words that carry no answer by themselves.
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "answer",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "from",
        "has",
        "have",
        "i",
        "in",
        "is",
        "it",
        "its",
        "my",
        "of",
        "on",
        "or",
        "so",
        "than",
        "that",
        "the",
        "their",
        "they",
        "this",
        "to",
        "was",
        "were",
        "which",
        "who",
        "with",
        "you",
        "your",
    ]
)
ARTICLES = frozenset(["a", "an", "the"])
MARKERS = ("####", "answer is", "Answer:", "=")  # an answer follows
LONGEST_CORE = 4  # words, beside an article
LAST_WORDS = 40  # of a reference; answers stand near its end

# Weights of the ranking, set on rewritten references of the benchmark's tuned domains.
SHARED, NUMERIC, NAMED, WHOLE, LATE, SHAPED = 3.0, 1.5, 1.0, 0.6, 0.5, 1.5


@dataclass(frozen=True)
class Shape:
    """What a core looks like, and what stands before it."""

    kind: str  # number, name or words
    words: int
    article: bool
    before: str  # the word before it, "" at the start


class CoreBook:
    """What the cores of earlier rows looked like."""

    def __init__(self) -> None:
        self.shapes: Counter[Shape] = Counter()

    def note(self, reference: str, core: str) -> None:
        """Remember a core that earned full reward."""
        at = reference.find(core)
        if core and at >= 0 and core != reference.strip():
            self.shapes[shape_of(reference, at, at + len(core))] += 1

    def likely(self, reference: str, question: str, reply: str = "") -> list[str]:
        """Stretches of a sentence reference that may be its core, likeliest first."""
        tails = [
            tail.strip().rstrip(".")
            for marker in MARKERS
            for _, found, tail in [reference.rpartition(marker)]
            if found and tail.strip()
        ]
        asked = {word.lower() for word in WORD.findall(question)}
        words = list(WORD.finditer(reference))[-LAST_WORDS:]
        scored: list[tuple[float, int, str]] = []
        for first in range(len(words)):
            for size in range(1, LONGEST_CORE + 1):
                run = words[first : first + size]
                if len(run) == size and _may_be_core([word.group().lower() for word in run], asked):
                    start = run[0].start()
                    score = self._score(reference, words, first, size, asked, reply)
                    scored.append((-score, start, reference[start : run[-1].end()]))
        return list(dict.fromkeys([*tails, *(text for _, _, text in sorted(scored))]))

    def _score(
        self, reference: str, words: Sequence[re.Match[str]], first: int, size: int, asked: set[str], reply: str
    ) -> float:
        start, end = words[first].start(), words[first + size - 1].end()
        text, shape = reference[start:end], shape_of(reference, start, end)
        plain = [word.group().lower() for word in words[first + shape.article : first + size]]
        score = LATE * (first + size) / len(words) - 0.1 * size
        bare = reference[words[first + shape.article].start() : end]
        if re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", reply, re.IGNORECASE):
            score += SHARED + 0.3 * len(plain)
        if shape.kind == "number":
            score += NUMERIC if len(plain) == 1 else 0.5 * NUMERIC
        if shape.kind == "name" and start > 0:
            score += NAMED + 0.2 * len(plain)
        if _stands_alone(words, first, size, asked) and not re.search(r"[,;]", text):
            score += WHOLE
        best = max((_likeness(shape, known) for known in self.shapes), default=0.0)
        return score + SHAPED * best - (0.2 if shape.article else 0.0)


def shape_of(reference: str, start: int, end: int) -> Shape:
    """The shape of a stretch of the reference."""
    words = [word.group() for word in WORD.finditer(reference[start:end])]
    article = len(words) > 1 and words[0].lower() in ARTICLES
    own = words[article:]
    kind = (
        "number"
        if NUMBER.search(reference[start:end])
        else "name"
        if own and all(word[:1].isupper() for word in own)
        else "words"
    )
    before = WORD.findall(reference[:start])
    return Shape(kind, len(own), article, before[-1].lower() if before else "")


def _likeness(one: Shape, other: Shape) -> float:
    """0 to 1: kind and length, then the word before."""
    if one.kind != other.kind:
        return 0.0
    return (
        0.4
        + 0.2 * (one.words == other.words)
        + 0.3 * (one.before == other.before)
        + 0.1 * (one.article == other.article)
    )


def _may_be_core(words: Sequence[str], asked: set[str]) -> bool:
    """Whether no word of it stands in the question, and it begins and ends in a word of content, articles aside."""
    own = words[1:] if len(words) > 1 and words[0] in ARTICLES else words
    if own[0] in FUNCTION_WORDS or own[-1] in FUNCTION_WORDS:
        return False
    return not any(word in asked for word in own)


def _stands_alone(words: Sequence[re.Match[str]], first: int, size: int, asked: set[str]) -> bool:
    """Whether the words beside it are no content of the answer: of the question, function words, or none."""
    beside = [words[i].group().lower() for i in (first - 1, first + size) if 0 <= i < len(words)]
    return all(word in asked or word in FUNCTION_WORDS for word in beside)


def shares_most(reply: str, reference: str, question: str) -> bool:
    """Whether the reply holds more than half of the words by which the reference goes beyond the question.

    Of a sentence whose core is not known, this says whether the reply may state it.
    """
    asked = {word.lower() for word in WORD.findall(question)}
    new = {word.lower() for word in WORD.findall(reference)} - asked - FUNCTION_WORDS
    said = {word.lower() for word in WORD.findall(reply)}
    return 2 * len(new & said) > len(new)


def shared_runs(reply: str, reference: str, question: str) -> list[tuple[int, int]]:
    """Stretches of the reply, as (start, end), whose words stand in the reference and not in the question; longest
    first. They are the reply's own answer, where that is right."""
    asked = {word.lower() for word in WORD.findall(question)}
    known = {word.lower() for word in WORD.findall(reference)} - asked - FUNCTION_WORDS
    runs: list[tuple[int, int]] = []
    for word in WORD.finditer(reply):
        if word.group().lower() not in known:
            continue
        if runs and not WORD.search(reply, runs[-1][1], word.start()):
            runs[-1] = (runs[-1][0], word.end())
        else:
            runs.append((word.start(), word.end()))
    return sorted(runs, key=lambda run: run[0] - run[1])
