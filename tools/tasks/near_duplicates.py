"""Questions that are nearly alike: a large part of their pairs of words is the same."""

from __future__ import annotations

import heapq
import re
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from zlib import crc32

from nslora.tools.rewards.checks import SPACELESS_RANGES

ALIKE = 0.8  # Jaccard similarity of the pairs of words
_COMPARED = 8  # earlier questions with the same rare pair of words that are compared, at most
_SKETCH = 64  # pairs of words of one question that are compared, at most
_SHOWN, _QUOTED = 3, 80  # pairs in a note, and characters of a question
_WORD = re.compile(rf"[{SPACELESS_RANGES}]|[^\W{SPACELESS_RANGES}]+")


def near_pairs(questions: Sequence[str]) -> list[tuple[int, int]]:
    """Find questions that are nearly alike, in time linear in their number.

    Two similar sets share one of their rarest elements, so only questions that do are compared (prefix filtering:
    Chaudhuri et al. 2006, A Primitive Operator for Similarity Joins in Data Cleaning).

    Args:
        questions: Texts, each once.

    Returns:
        Places (earlier, later) of similar questions. Each group of n questions that are linked has n - 1 pairs.
    """
    marks = [_marks(text) for text in questions]
    counts = Counter(chain.from_iterable(marks))
    rows: dict[int, frozenset[int]] = {}
    links: dict[int, int] = {}
    index: defaultdict[int, deque[int]] = defaultdict(lambda: deque(maxlen=_COMPARED))
    pairs = []
    for place, every in enumerate(marks):
        rarest = sorted(every, key=lambda each: (counts[each], each))[: int(len(every) * (1 - ALIKE) + 1e-9) + 1]
        shared = [each for each in rarest if counts[each] > 1]
        if not shared:
            continue
        row = rows[place] = frozenset(every)
        links[place] = place
        for other in sorted({other for each in shared for other in index[each]}):
            root = _root(links, other)
            if root != _root(links, place) and _alike(row, rows[other]):
                links[_root(links, place)] = root
                pairs.append((other, place))
        for each in shared:
            index[each].append(place)
    return pairs


def together(questions: Sequence[str], most: int) -> tuple[dict[str, str], list[str]]:
    """Find which questions must go to one split.

    Args:
        questions: Each once.
        most: Questions of the smallest split. A group of more follows one template, and is cut as different questions.

    Returns:
        Question -> the first of its group, for questions that are alike; and notes.
    """
    pairs = near_pairs(questions)
    groups = _groups(pairs)
    fitting = [group for group in groups if len(group) <= most]
    owner = {questions[place]: questions[group[0]] for group in fitting for place in group}
    notes = []
    if owner:
        shown = next((questions[one], questions[other]) for one, other in pairs if questions[one] in owner)
        notes.append(
            f"split: {len(owner):,} questions that are nearly alike, in {len(fitting):,} groups, are not cut apart "
            f"(first {_quoted(*shown)}); `split: {{near_duplicates: apart}}` cuts them as different questions."
        )
    if alike := sum(len(group) for group in groups if len(group) > most):
        notes.append(
            f"split: {alike:,} questions are alike but for a few words, more than a split holds; they are cut as "
            "different questions."
        )
    return owner, notes


def across(splits: Mapping[str, Iterable[str]]) -> list[str]:
    """Say which held-out questions are nearly alike to one of another split.

    Args:
        splits: Questions of each split; equal ones must be in one split.
    """
    owner = {question: split for split, every in splits.items() for question in every}
    questions = list(owner)
    pairs = near_pairs(questions)
    owners = [owner[question] for question in questions]
    mixed = [group for group in _groups(pairs) if len({owners[place] for place in group}) > 1]
    if not mixed:
        return []
    count = sum(owners[place] != "train" for group in mixed for place in group)
    apart = [pair for pair in pairs if owners[pair[0]] != owners[pair[1]]]
    named = "; ".join(
        f"{owners[one]} and {owners[other]}: {_quoted(questions[one], questions[other])}"
        for one, other in apart[:_SHOWN]
    )
    return [
        f"{count:,} questions of validation and test are nearly alike to one of another split ({named}): a gain on "
        "them may come from rows that were learnt by heart."
    ]


def _quoted(one: str, other: str) -> str:
    return f"{one[:_QUOTED]!r} and {other[:_QUOTED]!r}"


def _groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Places that pairs link, in order; each list has two or more."""
    links: dict[int, int] = {}
    for earlier, later in pairs:
        one, other = (_root(links, links.setdefault(place, place)) for place in (earlier, later))
        links[max(one, other)] = min(one, other)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for place in sorted(links):
        groups[_root(links, place)].append(place)
    return list(groups.values())


def _root(links: dict[int, int], place: int) -> int:
    while links[place] != place:
        links[place] = place = links[links[place]]
    return place


def _alike(one: frozenset[int], other: frozenset[int]) -> bool:
    both = len(one) + len(other)
    return min(len(one), len(other)) * (1 + ALIKE) >= ALIKE * both and len(one & other) * (1 + ALIKE) >= ALIKE * both


def _marks(text: str) -> array[int]:
    """Hashes of the pairs of words, each once: those of the least value of a long text. A lone word is one."""
    words = _WORD.findall(text.casefold())
    pairs = pairwise(words) if len(words) > 1 else [(*(words or [text]), "")]
    marks = {crc32(f"{one} {other}".encode("utf-8", "replace")) for one, other in pairs}
    return array("I", heapq.nsmallest(_SKETCH, marks) if len(marks) > _SKETCH else marks)
