"""Answers of several lines: the marks before the lines (bullets, numbers) are form, the text after them is content."""

import re
from collections.abc import Sequence

MARK = re.compile(r"[ \t]*(?:[-*•+>]|#{1,6}|(?:step )?\d{1,2}[.):]|\([\da-z]\))[ \t]+", re.IGNORECASE)


def lines_of(text: str) -> list[str]:
    """Split a text into its lines that are not blank, without the blanks around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def several(text: str) -> bool:
    """Say whether a text has two or more lines that are not blank."""
    return len(lines_of(text)) > 1


def unmarked(text: str) -> str:
    """Remove the marks before the lines; a text of one line stays as it is."""
    if not several(text):
        return text
    return "\n".join(line[found.end() :] if (found := MARK.match(line)) else line for line in lines_of(text))


def mark_of(text: str) -> str:
    """Return the mark of the first line if every line has a mark, else ""."""
    found = [MARK.match(line) for line in lines_of(text)]
    return found[0].group() if len(found) > 1 and found[0] and all(found) else ""


def marked(text: str, mark: str) -> str:
    """Put the mark before each line; a number in the mark counts up from line to line."""
    if not mark:
        return text

    def nth(i: int) -> str:
        return re.sub(r"\d+", lambda number: str(int(number.group()) + i), mark)

    return "\n".join(nth(i) + line for i, line in enumerate(lines_of(text)))


def find_lines(reply: str, lines: Sequence[str]) -> re.Match[str] | None:
    """Find the last place in a reply that holds these lines in this order, with or without marks."""
    pattern = r"[ \t]*\n\s*".join(f"(?:{MARK.pattern})?{re.escape(line)}" for line in lines)
    found = list(re.finditer(rf"(?:(?<=\n)|^){pattern}(?=[ \t]*(?:\n|$))", reply, re.IGNORECASE))
    return found[-1] if found else None


def marked_block(reply: str) -> tuple[int, int] | None:
    """Find the longest run of two or more lines with marks.

    Returns:
        Start and end of the run as character offsets, or None if the reply has no such run.
    """
    runs: list[tuple[int, int, int]] = []  # lines, start, end
    at = count = start = 0
    for line in reply.splitlines(keepends=True):
        count, start = (count + 1, start if count else at) if MARK.match(line) else (0, 0)
        if count > 1:
            runs.append((count, start, at + len(line.rstrip())))
        at += len(line)
    return max(runs)[1:] if runs else None
