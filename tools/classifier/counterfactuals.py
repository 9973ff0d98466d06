"""The repairs of one failing reply that the reward is asked about, and what it would pay for each.

First a proof: the reference in a layout of good replies that earns this very row full reward. Then content repairs
(the reference in place of the reply's own answer) and form repairs (the reply's own answer in the proven layout).
`tools/classifier/attribution.py` reads the deficits off what they earn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from nslora.tools.classifier.answer_core import FUNCTION_WORDS, MARKERS, NUMBER, WORD, shared_runs
from nslora.tools.classifier.answer_lines import several, unmarked
from nslora.tools.classifier.answer_spans import replace, spans
from nslora.tools.classifier.answer_values import find_value, leaves_of, written_otherwise
from nslora.tools.classifier.layouts import (
    Layout,
    LayoutBook,
    Span,
    find_bounded,
    number_in,
    unescape,
    without_function_words,
)
from nslora.tools.classifier.reward_probe import Asker

if TYPE_CHECKING:
    from nslora.tools.rewards.score import Graded


HELD_BACK = 4  # calls kept for the repairs while a proof is searched for


class AttributionSettings(BaseModel):
    """How much is asked of the reward, and what counts as a deficit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: float = Field(
        default=0.0, ge=0, lt=1, description="Noise of the reward; `measure_tolerance` asks it twice."
    )
    deficit_tolerance: float = Field(
        default=0.08, ge=0, lt=1, description="Share of the missing reward up to which a repair counts as complete."
    )
    unstated_tolerance: float = Field(
        default=0.03,
        ge=0,
        lt=1,
        description="The same for the content of a reply that does not state the reference: similarity rewards take "
        "little off for one wrong word.",
    )
    max_spans: int = Field(default=3, ge=1)
    max_layouts: int = Field(default=3, ge=1)
    max_calls_per_failure: int = Field(default=12, ge=1)
    sentence_words: int = Field(
        default=5, ge=1, description="References of more words are searched for the span that earns full reward."
    )
    max_core_calls: int = Field(default=4, ge=0, description="Of the calls, those spent on that search.")
    heads_weight: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Share of the reward heads in the deficits where no single repair earned "
        "full reward. Measured on the benchmark's tuned domains with twelve styles: similarity 0.973 without, 0.983 at "
        "0.3, 0.992 at 0.5; check rewards alike.",
    )


@dataclass(frozen=True)
class Repairs:
    """The best reply and reward of each repair; None where it could not be tried. core: the reference's answer.

    answers_otherwise: the content repair earned what it did in a place that shows to be the answer's and holds another
    one, wherever else the reply may mention the reference. rewritten: the reply states the core in another writing.
    """

    core: str
    content: tuple[float, str] | None
    form: tuple[float, str] | None
    proof: str | None  # both mended: earned full reward
    answers_otherwise: bool = False
    rewritten: bool = False


def repairs_of(failure: Graded, reference: str, ask: Asker, book: LayoutBook, settings: AttributionSettings) -> Repairs:
    full = 1.0 - settings.tolerance - 1e-9
    question, reply = failure.example.question, failure.reply
    proven: list[Layout] = []
    proof: str | None = None
    core = reference
    ask.held_back = min(HELD_BACK, ask.cap // 2)
    for layout in book.candidates():
        found = _core_in(layout, failure, ask, full, settings, book)
        worked = found is not None
        book.note(layout, worked)
        if found is not None:
            core, proof = found, layout.wrap(found, question)
            proven.append(layout)
            break
    ask.held_back = 0
    places = spans(reply, core, question, proven, settings.max_spans)
    value = find_value(reply, core)
    if value is not None:  # to write it in another way mends the form, and no content
        places = [place for place in places if place.end <= value.start or place.start >= value.end]
    places = [place for place in places if not written_otherwise(reply[place.start : place.end], core)]
    case = proven[0].case if proven else "as is"
    replaced = [replace(reply, place, core, case) for place in places]
    content = _best(ask, replaced, full)
    least = max(settings.tolerance, settings.deficit_tolerance * (1.0 - failure.score.value))
    paid = content[1] if content and content[0] > failure.score.value + least else None
    otherwise = [
        place
        for place, text in zip(places, replaced, strict=True)
        if text is not None and text == paid and _other_answer(reply, place, core)
    ]
    at = find_bounded(reply, core)
    own = [Span(*run) for run in shared_runs(reply, reference, question)[:1] if at is None]
    if at is not None and (not (WORD.match(core[0]) and WORD.match(core[-1])) or core.lower() in FUNCTION_WORDS):
        # Windows of words leave out the brackets or the stop that the answer begins or ends with, and an answer "A".
        own = [Span(at, at + len(core))]
    # An answer that shows to be the reply's own goes into the layout, not a mention of the reference beside it.
    texts = [core] if value is not None else _own_texts(reply, core, otherwise or [*own, *places])
    form = _best(ask, [layout.wrap(text, question) for layout in proven for text in texts], full) if proven else None
    return Repairs(core, content, form, proof, bool(otherwise), value is not None)


def _other_answer(reply: str, place: Span, core: str) -> bool:
    """Whether the place shows to be the answer's, and another number than the core fills it.

    Only numbers tell: words may be the same answer in other words ("B", "as follows"), and so may "1/2" or "50%".
    """
    filling = reply[place.start : place.end].strip(" $€£")
    given, wanted = number_in(filling), number_in(core)
    plain = NUMBER.match(filling) and "%" not in filling and NUMBER.fullmatch(core.strip(" $€£"))
    return bool(place.framed and plain and given is not None and given != wanted)


def _core_in(
    layout: Layout, failure: Graded, ask: Asker, full: float, settings: AttributionSettings, book: LayoutBook
) -> str | None:
    """The part of the reference that earns full reward in this layout, the barest that was found; None where none does.

    Of a sentence its likely cores are tried; of a short reference what is left without the function words at its ends
    ("1911" of "in 1911"), until that proved wrong on a few rows.
    """
    question, reference = failure.example.question, (failure.example.reference or "").strip()

    def earns(core: str) -> bool:
        value = ask(layout.wrap(core, question))
        return value is not None and value >= full

    if len(WORD.findall(reference)) > settings.sentence_words and not leaves_of(reference):
        likely = book.cores.likely(reference, question, failure.reply)[: settings.max_core_calls]
        # Lines are an answer as a whole, unless one of them says by a marker that the answer follows.
        whole_first = several(reference) and not any(marker in reference for marker in MARKERS)
        cores = [reference, *likely] if whole_first else [*likely, reference]
        core = next((core for core in cores if earns(core)), None)
        book.cores.note(reference, core or "")
        return core
    bare = without_function_words(reference)
    if bare != reference and book.bare_cores_work:
        worked = earns(bare)
        if worked or earns(reference):
            book.note_bare_core(worked)
            return bare if worked else reference
        return None
    return reference if earns(reference) else None


def _own_texts(reply: str, core: str, places: Sequence[Span]) -> list[str]:
    """What the reply's own answer may be, for the form repairs. Case is form, so it is mended too."""
    quoted = reply.lstrip().startswith(("{", "["))
    texts = [reply[place.start : place.end] for place in places]
    texts = [unmarked(unescape(text) if quoted else text) for text in texts]
    return [core if text.lower() == core.lower() else text for text in texts]


def _best(ask: Asker, replies: Sequence[str | None], full: float) -> tuple[float, str] | None:
    """The best-paid of the replies; asks no further once one earns full reward."""
    best: tuple[float, str] | None = None
    for reply in dict.fromkeys(replies):
        value = ask(reply)
        if reply is not None and value is not None and (best is None or value > best[0]):
            best = (value, reply)
        if best is not None and best[0] >= full:
            break
    return best
