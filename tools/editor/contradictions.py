"""Rules of a prompt that contradict what the reward says of the rows that the editor was shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nslora.tools.editor.failures_view import clip, right_reply_of
from nslora.tools.errors import PromptError
from nslora.tools.prompt import Prompt, normalise
from nslora.tools.rewards.score import Graded

_QUOTED = re.compile(r"'([^'\n]+)'|\"([^\"\n]+)\"|“([^”\n]+)”|`([^`\n]+)`")
_FORBIDS = re.compile(r"\b(?:not|never|avoid|cannot)\b|n['’]t\b", re.IGNORECASE)
_DEMANDS = re.compile(r"\b(?:must|should|always|only|has to|exactly)\b", re.IGNORECASE)
# A sentence with one of these says when it holds, or names one case of several.
_LIMITED = re.compile(
    r"\b(?:if|when|where|whenever|unless|otherwise|for|or|either|one of|but|except|other than|without|like|such as|"
    r"example|instance|e\.g)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
SHOWN_CHARACTERS = 120


class ContradictionError(PromptError):
    """A rule of a prompt contradicts the reward's words on a row."""


def refuse_contradictions(new: Prompt, old: Prompt, failures: Sequence[Graded]) -> None:
    """Raise ContradictionError if a new rule forbids what is right on a row shown, or demands of all what is not.

    Only rules that quote a text are judged, and none that says when it holds.

    Args:
        new: The prompt that an editor proposes.
        old: The prompt in force; its rules are not judged.
        failures: The failing rows that the editor was shown.
    """
    right = [(each, f" {normalise(reply)} ") for each in failures if (reply := right_reply_of(each))]
    known = f"{old.system}\n{old.template}"
    for rule in _SENTENCE.split(f"{new.system}\n{new.template}"):
        if not rule.strip() or rule in known or _LIMITED.search(rule):
            continue
        quoted = [text for groups in _QUOTED.findall(rule) for text in groups if normalise(text)]
        for text in quoted:
            having = [f" {normalise(text)} " in reply for _, reply in right]
            before = rule[: rule.index(text)]
            if _FORBIDS.search(before):
                wrong, what = (next((i for i, has in enumerate(having) if has), None), "forbids")
            elif len(quoted) == 1 and _DEMANDS.search(before):
                wrong, what = (next((i for i, has in enumerate(having) if not has), None), "demands")
            else:
                continue
            if wrong is not None:
                row = right[wrong][0]
                raise ContradictionError(
                    f"The rule {clip(rule.strip(), SHOWN_CHARACTERS)!r} {what} {text!r}, but the right reply to "
                    f"{clip(row.example.asked, SHOWN_CHARACTERS)!r} is "
                    f"{clip(right_reply_of(row) or '', SHOWN_CHARACTERS)!r}: remove the rule, or say when it holds."
                )
