"""Two prompt documents beside each other: lines that changed, and the words that changed in them."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from nslora.tools.prompt import Prompt

_WORDS = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
Parts = tuple[tuple[bool, str], ...]  # of a line: (whether these words are marked, text)


@dataclass(frozen=True)
class DiffLine:
    """A line of both documents; None on the side that lacks it."""

    old: Parts | None
    new: Parts | None

    @property
    def changed(self) -> bool:
        """Whether the two sides differ."""
        return self.old != self.new


def side_by_side(old: Prompt, new: Prompt) -> list[DiffLine]:
    """Every line of the two documents."""
    before, after = old.render().splitlines(), new.render().splitlines()
    lines: list[DiffLine] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            lines += [DiffLine(((False, text),), ((False, text),)) for text in before[i:j]]
        else:
            lines += [_line(*pair) for pair in zip_longest(before[i:j], after[k:m])]
    return lines


def _line(old: str | None, new: str | None) -> DiffLine:
    """A pair of lines. No words are marked of two that have little in common."""
    if old is None or new is None:
        return DiffLine(*(None if text is None else ((False, text),) for text in (old, new)))
    before, after = _WORDS.findall(old), _WORDS.findall(new)
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() < 0.5:
        return DiffLine(((False, old),), ((False, new),))
    codes = matcher.get_opcodes()
    return DiffLine(
        _parts(before, [(kind != "equal", i, j) for kind, i, j, _, _ in codes]),
        _parts(after, [(kind != "equal", k, m) for kind, _, _, k, m in codes]),
    )


def _parts(words: Sequence[str], spans: Sequence[tuple[bool, int, int]]) -> Parts:
    return tuple((changed, "".join(words[i:j])) for changed, i, j in spans if i < j)
