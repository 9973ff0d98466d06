"""References that stand in a house style themselves: what all of them share around their answers is form.

Without this, such a reference would be content as a whole, the style would never be missing by itself, and a reply that
lacks both would seem to need content twice as much as form. Text work only; no reward is asked here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nslora.tools.lines import several
from nslora.tools.repairs import FRAMED_REPLIES, Case, Layout, shared_frames, unescape

if TYPE_CHECKING:
    from nslora.tools.rewards import Graded
    from nslora.tools.task import Example

LEAST_REFERENCES = 5        # different ones; fewer may share a beginning by chance
FRAMED_SHARE = 0.9          # of the references; a few that were not written in the style do not hide it
MARK = re.compile(r"[^\w\s.!?]")    # "$" and "**" make a frame, " kg" and a full stop do not


def frame_of(references: Sequence[str | None]) -> Layout | None:
    """What nearly all references have around their answers; None where they have nothing in common that is form."""
    texts = list(dict.fromkeys(text.strip() for text in references if text and text.strip()))[:FRAMED_REPLIES]
    if len(texts) < LEAST_REFERENCES or any(several(text) for text in texts):
        return None
    for layout in shared_frames(texts):
        framed = [text for text in texts if layout.slot(text, "") is not None]
        if len(framed) >= FRAMED_SHARE * len(texts) and MARK.search(layout.prefix + layout.suffix):
            return replace(layout, case=case_of([inner(text, layout) for text in framed]))
    case = case_of(texts)
    return Layout(case=case) if case != "as is" else None


def unframed(graded: Graded, frame: Layout | None) -> Graded:
    """The same with the bare answer as its reference. For reading alone: a reward takes the row as it came."""
    return graded if frame is None else replace(graded, example=bare(graded.example, frame))


def bare(example: Example, frame: Layout | None) -> Example:
    """The row with the answer inside its reference's frame as its reference."""
    if frame is None or example.reference is None:
        return example
    return replace(example, reference=inner(example.reference.strip(), frame))


def case_of(texts: Sequence[str]) -> Case:
    """"upper" where all texts that have a case stand in capitals. Small letters are what plain answers have anyway."""
    cased = [text for text in texts if text.upper() != text.lower()]
    return "upper" if len(cased) >= LEAST_REFERENCES and all(text == text.upper() for text in cased) else "as is"


def inner(reference: str, frame: Layout) -> str:
    """The answer inside a framed reference; the reference itself where it stands in no frame."""
    slot = frame.slot(reference, "")
    if slot is None:
        return reference
    text = reference[slot.start : slot.end]
    return unescape(text) if frame.escaped else text
