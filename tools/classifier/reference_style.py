"""Reference style: what nearly all references of a task share around their answers counts as form.

Otherwise a styled reference would be content as a whole: the style could never be missing alone, and a reply that
lacks both would seem to lack content twice as much as form. This module only compares texts; it asks no reward.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from nslora.tools.classifier.answer_lines import several
from nslora.tools.classifier.layouts import COMPARED_TEXTS, QUESTION, Case, Layout, shared_layouts, unescape
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example

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
