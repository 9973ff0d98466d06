"""References that stand in a house style themselves: what all of them share around their answers is form.

Without this, such a reference would be content as a whole, the style would never be missing by itself, and a reply that
lacks both would seem to need content twice as much as form. Text work only; no reward is asked here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nslora.tools.classifier.answer_lines import several
from nslora.tools.classifier.layouts import FRAMED_REPLIES, QUESTION, Case, Layout, shared_frames, unescape

if TYPE_CHECKING:
    from nslora.tools.rewards.score import Graded
    from nslora.tools.schema import Example

LEAST_REFERENCES = 5  # different ones; fewer may share a beginning by chance
FRAMED_SHARE = 0.9  # of the references; a few that were not written in the style do not hide it
# What makes a frame: a mark at a word's edge, as in "**", "- " or "Reply:"; not " kg", "Yes, " or a full stop.
MARK = re.compile(r"(?<!\w)[^\w\s.!?,]|[^\w\s.!?,](?!\w)")
# Where a frame may touch the answer: at a space, a bracket, a quote, or the end of a clause. "2021-", ":30", "@ex.com"
# and a sign before a number are parts of answers.
OPENS, CLOSES = re.compile(r"(?:^|[\s*\"'`(\[{<>|~“«„=])\Z"), re.compile(r"\Z|[\s*\"`)\]}<>|~”»“=]|[.,;:!?'](?!\w)")


def reference_style_of(rows: Sequence[Example]) -> Layout | None:
    """What nearly all references have around their answers; None where they have nothing in common that is form.

    A reference may restate its question. Fields of a JSON object that are the same in all rows count as form too.
    Answers of several lines have marks, which are known as form anyway.
    """
    known = {row.reference.strip(): row.question for row in rows if row.reference and row.reference.strip()}
    pairs = list(known.items())[:FRAMED_REPLIES]
    if len(pairs) < LEAST_REFERENCES:
        return None
    plain, anew = [text for text, _ in pairs], [restated(text, question) for text, question in pairs]
    for layout in [*shared_frames(plain), *(shared_frames(anew) if anew != plain else [])]:
        framed = [text for pair in pairs if (text := inner(*pair, layout)) is not None and not several(text)]
        if len(framed) >= FRAMED_SHARE * len(pairs) and is_form(layout):
            return replace(layout, case=case_of(framed))
    case = "as is" if any(several(text) for text in known) else case_of(list(known))
    return Layout(case=case) if case != "as is" else None


def is_form(layout: Layout) -> bool:
    """Whether what stands around the answers looks like a style, and not like a part of each answer."""
    apart = OPENS.search(layout.prefix) and CLOSES.match(layout.suffix)
    return bool(apart and MARK.search(layout.prefix + " " + layout.suffix))


def restated(text: str, question: str) -> str:
    """The text with a mark where it restates the question, as whole words."""
    return re.sub(rf"(?<!\w){re.escape(question)}(?!\w)", QUESTION, text) if question.strip() else text


def without_reference_style(graded: Graded, style: Layout | None) -> Graded:
    """The same with the bare answer as its reference. For reading alone: a reward takes the row as it came."""
    return graded if style is None else replace(graded, example=bare(graded.example, style))


def bare(example: Example, style: Layout | None) -> Example:
    """The row with the answer inside its reference's frame as its reference; as it is where it stands in none."""
    if style is None or example.reference is None:
        return example
    answer = inner(example.reference.strip(), example.question, style)
    return example if answer is None else replace(example, reference=answer)


def case_of(texts: Sequence[str]) -> Case:
    """ "upper" where all texts that have a case stand in capitals. Small letters are what plain answers have anyway."""
    cased = [text for text in texts if text.upper() != text.lower()]
    return "upper" if len(cased) >= LEAST_REFERENCES and all(text == text.upper() for text in cased) else "as is"


def inner(reference: str, question: str, style: Layout) -> str | None:
    """The answer inside a framed reference; None where it stands in no such frame."""
    slot = style.slot(reference, question)
    if slot is None:
        return None
    text = reference[slot.start : slot.end]
    return unescape(text) if style.escaped else text
