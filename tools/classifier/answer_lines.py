"""Answers of several lines: the marks before their lines (bullets, numbers) are form, what follows them is content."""

from __future__ import annotations

import re
from collections.abc import Sequence

MARK = re.compile(r"[ \t]*(?:[-*•+>]|#{1,6}|(?:step )?\d{1,2}[.):]|\([\da-z]\))[ \t]+", re.IGNORECASE)


def lines_of(text: str) -> list[str]:
    """The lines that hold something, without blanks around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def several(text: str) -> bool:
    return len(lines_of(text)) > 1


def unmarked(text: str) -> str:
    """The same lines without marks before them; a text of one line as it is."""
    if not several(text):
        return text
    return "\n".join(line[found.end() :] if (found := MARK.match(line)) else line for line in lines_of(text))


def mark_of(text: str) -> str:
    """The mark of the first line, where every line has one; "" else."""
    found = [MARK.match(line) for line in lines_of(text)]
    return found[0].group() if len(found) > 1 and found[0] and all(found) else ""


def marked(text: str, mark: str) -> str:
    """Each line behind the mark; a number in it counts on."""
    if not mark:
        return text
    first = re.search(r"\d+", mark)

    def nth(i: int) -> str:
        return mark if first is None else mark.replace(first.group(), str(int(first.group()) + i))

    return "\n".join(nth(i) + line for i, line in enumerate(lines_of(text)))


def find_lines(reply: str, lines: Sequence[str]) -> re.Match[str] | None:
    """Where the lines stand in the reply one below the other, with or without marks; the last such place."""
    pattern = r"[ \t]*\n\s*".join(f"(?:{MARK.pattern})?{re.escape(line)}" for line in lines)
    found = list(re.finditer(rf"(?:(?<=\n)|^){pattern}(?=[ \t]*(?:\n|$))", reply, re.IGNORECASE))
    return found[-1] if found else None


def marked_block(reply: str) -> tuple[int, int] | None:
    """Start and end of the longest run of two or more lines with marks; None where there is none."""
    runs: list[tuple[int, int, int]] = []  # lines, start, end
    at = count = start = 0
    for line in reply.splitlines(keepends=True):
        count, start = (count + 1, start if count else at) if MARK.match(line) else (0, 0)
        if count > 1:
            runs.append((count, start, at + len(line.rstrip())))
        at += len(line)
    return max(runs)[1:] if runs else None
