"""Counterfactual repair: changed versions of one failing reply, and the reward of each (this project's own method).

The reference in a layout of good replies comes first; if it earns this row full reward, the layout is proven. Then come
content repairs (the reference in place of the reply's own answer) and form repairs (the reply's own answer in the
proven layout). `tools/classifier/attribution.py` derives the deficits from their rewards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from nslora.tools.classifier.answer_core import FUNCTION_WORDS, MARKERS, NUMBER, WORD, shared_runs, shares_most
from nslora.tools.classifier.answer_lines import several, unmarked
from nslora.tools.classifier.answer_spans import replace, spans
from nslora.tools.classifier.answer_values import find_value, leaves_of, written_otherwise
from nslora.tools.classifier.layouts import (
    BARE_CORE,
    Layout,
    LayoutBook,
    Span,
    find_bounded,
    number_in,
    opens_json,
    states,
    unescape,
    without_function_words,
)
from nslora.tools.classifier.reward_probe import RewardProbe
from nslora.tools.rewards.score import Graded

HELD_BACK = 4  # calls that the search for a layout leaves to the repairs

Repair = tuple[float, str]  # the reward, and the repaired reply that earned it


class AttributionSettings(BaseModel):
    """How many reward calls the classifier makes, and which deficits count as missing.

    Attributes:
        tolerance: Noise of the reward; `measure_tolerance` measures it.
        deficit_tolerance: Share of the missing reward up to which a repair counts as complete.
        unstated_tolerance: The same for the content of a reply that does not state the reference: similarity rewards
            take little off for one wrong word.
        max_spans: Most places of a reply that are tried as its answer.
        max_layouts: Most layouts that are tried on a row.
        max_calls_per_failure: Most reward calls for one failure.
        sentence_words: References of more words are searched for the part that earns full reward.
        max_core_calls: Most calls of a failure that this search may spend.
        heads_weight: Weight of the reward heads in the deficits if no single repair earned full reward. Macro-F1 on
            the benchmark's tuned domains with twelve styles, similarity reward: 0.973 at 0, 0.983 at 0.3, 0.992 at
            0.5; check rewards do not depend on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: float = Field(default=0.0, ge=0, lt=1)
    deficit_tolerance: float = Field(default=0.08, ge=0, lt=1)
    unstated_tolerance: float = Field(default=0.03, ge=0, lt=1)
    max_spans: int = Field(default=3, ge=1)
    max_layouts: int = Field(default=3, ge=1)
    max_calls_per_failure: int = Field(default=12, ge=1)
    sentence_words: int = Field(default=5, ge=1)
    max_core_calls: int = Field(default=4, ge=0)
    heads_weight: float = Field(default=0.5, ge=0, lt=1)

    @property
    def full_reward(self) -> float:
        """Reward from which a reply counts as right, given the noise."""
        return 1.0 - self.tolerance - 1e-9


DEFAULTS = AttributionSettings()


@dataclass(frozen=True)
class Repairs:
    """The best repair of each kind; None if a kind could not be tried.

    Attributes:
        content: The right content in the reply's own form.
        form: The reply's own content in the proven form.
        both: The right content in the proven form, which earned full reward.
        stated: Whether the reply states the right answer already.
    """

    content: Repair | None
    form: Repair | None
    both: Repair | None
    stated: bool


def repairs_of(failure: Graded, ask: RewardProbe, book: LayoutBook, settings: AttributionSettings) -> Repairs:
    """Try the repairs of one failing reply; the row must have a reference."""
    question, reply, own_reward = failure.example.question, failure.reply, failure.score.value
    reference = core = (failure.example.reference or "").strip()
    proven: Layout | None = None
    ask.held_back = min(HELD_BACK, ask.cap // 2)
    for layout in book.candidates():
        found = _core_in(layout, failure, ask, settings, book)
        book.note(layout, found is not None)
        if found is not None:
            core, proven = found, layout
            break
    ask.held_back = 0
    places = spans(reply, core, question, [proven] if proven else [], settings.max_spans)
    value = find_value(reply, core)
    if value is not None:  # writing it in another notation repairs the form and no content
        places = [place for place in places if place.end <= value.start or place.start >= value.end]
    places = [place for place in places if not written_otherwise(place.of(reply), core)]
    replaced = [replace(reply, place, core, proven.case if proven else "as is") for place in places]
    content = _best(ask, replaced, settings)
    least = own_reward + max(settings.tolerance, settings.deficit_tolerance * (1.0 - own_reward))
    otherwise = [
        place
        for place, text in zip(places, replaced, strict=True)
        if content and content[0] > least and text == content[1] and _other_answer(reply, place, core)
    ]
    form = None
    if proven:
        # If a place shows to be the reply's own answer, that goes into the layout, not a mention of the reference.
        own = otherwise or [*_own_answer(reply, core, reference, question), *places]
        texts = [core] if value is not None else _own_texts(reply, core, own)
        form = _best(ask, [proven.wrap(text, question) for text in texts], settings)
    stated = not otherwise and (value is not None or states(reply, core))
    if not otherwise and not stated and not proven and len(WORD.findall(core)) > settings.sentence_words:
        stated = shares_most(reply, core, question)
    return Repairs(content, form, (1.0, proven.wrap(core, question)) if proven else None, stated)


def _own_answer(reply: str, core: str, reference: str, question: str) -> list[Span]:
    """The part of the reply that matches the reference or its core, if it is no plain run of words."""
    at = find_bounded(reply, core)
    if at is None:
        return [Span(*run) for run in shared_runs(reply, reference, question)[:1]]
    # Runs of words leave out brackets and stops at the ends of an answer, and an answer "A".
    if core.lower() in FUNCTION_WORDS or not (WORD.match(core[0]) and WORD.match(core[-1])):
        return [Span(at, at + len(core))]
    return []


def _other_answer(reply: str, place: Span, core: str) -> bool:
    """Say whether the place is surely the answer's, and holds another number than the core.

    Only numbers tell: words may be the same answer in other words ("B", "as follows"), and so may "1/2" or "50%".
    """
    filling = place.of(reply).strip(" $€£")
    given = number_in(filling)
    plain = NUMBER.match(filling) and "%" not in filling and NUMBER.fullmatch(core.strip(" $€£"))
    return bool(place.framed and plain and given is not None and given != number_in(core))


def _core_in(
    layout: Layout, failure: Graded, ask: RewardProbe, settings: AttributionSettings, book: LayoutBook
) -> str | None:
    """Find the shortest part of the reference that earns full reward in this layout; None if no tried part does.

    The likely cores of a sentence are tried. A short reference is tried without the function words at its ends ("1911"
    of "in 1911"), until that failed on a few rows.
    """
    question, reference = failure.example.question, (failure.example.reference or "").strip()

    def earns(core: str) -> bool:
        value = ask(layout.wrap(core, question))
        return value is not None and value >= settings.full_reward

    if len(WORD.findall(reference)) > settings.sentence_words and not leaves_of(reference):
        likely = book.cores.likely(reference, question, failure.reply)[: settings.max_core_calls]
        # Several lines are one answer, unless a marker says that the answer follows it.
        whole_first = several(reference) and not any(marker in reference for marker in MARKERS)
        cores = [reference, *likely] if whole_first else [*likely, reference]
        core = next((core for core in cores if earns(core)), None)
        book.cores.note(reference, core or "")
        return core
    bare = without_function_words(reference)
    bare_first = bare != reference and book.may_work(BARE_CORE)
    core = next((core for core in ([bare, reference] if bare_first else [reference]) if earns(core)), None)
    if bare_first and core is not None:
        book.note(BARE_CORE, core == bare)
    return core


def _own_texts(reply: str, core: str, places: Sequence[Span]) -> list[str]:
    """What the reply's own answer may be, for form repairs. Case is form, so it is repaired too."""
    texts = [unmarked(unescape(place.of(reply)) if opens_json(reply) else place.of(reply)) for place in places]
    return [core if text.lower() == core.lower() else text for text in texts]


def _best(ask: RewardProbe, replies: Sequence[str | None], settings: AttributionSettings) -> Repair | None:
    """Find the reply with the highest reward; the search ends at the first one with full reward."""
    best: Repair | None = None
    for reply in dict.fromkeys(replies):
        value = ask(reply)
        if reply is not None and value is not None and (best is None or value > best[0]):
            best = (value, reply)
            if value >= settings.full_reward:
                break
    return best
