"""The reward-based classifier: does a failing reply lack content, form, or both?

It changes the reply (counterfactual repair, this project's own) and asks the reward about each change. It reads only
the `value` of a score, never the names, kinds or suggestions of checks.

    missing reward   1 - the reply's reward
    content deficit  share of the missing reward that is still missing after a repair of the form only
    form deficit     share of the missing reward that is still missing after a repair of the content only
    p_content        probability that content is missing, against form (`tools/classifier/probability.py`)
    verdict          both if both deficits are above their limits, else the larger one

The reference in a layout of good replies comes first; if it earns this row full reward, the layout is proven. Then come
content repairs (the reference in the place of the reply's own answer) and form repairs (the reply's own answer in the
proven layout). If no layout is known, the content deficit follows from the content repair (did the reward rise?) and
from whether the reply states the reference. A failure costs about four reward calls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

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
    without_reference_style,
)
from nslora.tools.classifier.probability import p_content
from nslora.tools.errors import RewardError
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example, Settings

RewardFunction = Callable[[Example, str], Score]

LARGEST_NOISE = 0.3  # a reward that varies more between two calls cannot show what a repair gains
PROBED_ROWS = 5  # replies that are scored twice to measure the noise of a reward
FURTHER_ROWS = 10  # more of them, if the first ones showed noise


class RewardProbe:
    """Asks the reward about replies to one row; `calls` counts the calls that no cached value saved.

    Attributes:
        cap: Most calls for this row.
        held_back: Calls of the cap that may not be spent yet.
    """

    def __init__(self, failure: Graded, reward: RewardFunction, cap: int) -> None:
        self.example, self.reward, self.cap = failure.example, reward, cap
        self.seen: dict[str, float] = {failure.reply: failure.score.value}
        self.calls = self.held_back = 0

    def __call__(self, reply: str | None) -> float | None:
        """Return the reward of a reply, or None if there is no reply or no call left."""
        if reply is None or (reply not in self.seen and self.calls >= self.cap - self.held_back):
            return None
        if reply not in self.seen:
            self.calls += 1
            self.seen[reply] = self.reward(self.example, reply).value
        return self.seen[reply]


def measure_tolerance(reward: RewardFunction, graded: Sequence[Graded], *, largest: float = LARGEST_NOISE) -> float:
    """Measure the noise of a reward by scoring a few replies twice.

    If the first `PROBED_ROWS` replies show noise, `FURTHER_ROWS` more are scored twice: a reward that is pure chance
    may agree with itself on a few rows.

    Args:
        reward: The reward; it must not answer from a cache.
        graded: Replies to score.
        largest: Largest accepted difference between two scores of one reply.

    Returns:
        Twice the largest difference on the first rows, or the largest difference on the further rows if that is more,
        but at most `largest`; 0.0 for a reward without noise.

    Raises:
        RewardError: Two scores of one reply differ by more than `largest`, or the reward fails.
    """
    further = PROBED_ROWS + FURTHER_ROWS
    worst = max((_difference(reward, row, largest) for row in graded[:PROBED_ROWS]), default=0.0)
    if worst == 0.0:
        return 0.0
    return min(largest, max([2 * worst, *(_difference(reward, row, largest) for row in graded[PROBED_ROWS:further])]))


def _difference(reward: RewardFunction, row: Graded, largest: float) -> float:
    """Difference between two scores of one reply."""
    first, second = (reward(row.example, row.reply).value for _ in range(2))
    if abs(first - second) > largest:
        raise RewardError(
            f"Row {row.example.id}: the reward returned {first:.3f} and then {second:.3f} for the same reply "
            f"{row.reply[:80]!r}, but scores of one reply may differ by at most {largest:g}; make the reward steadier."
        )
    return abs(first - second)


HELD_BACK = 4  # calls that the search for a layout leaves to the repairs

Repair = tuple[float, str]  # the reward, and the repaired reply that earned it


class AttributionSettings(Settings):
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


VerdictName = Literal["content", "form", "both"]


@dataclass(frozen=True)
class Attribution:
    """What one failing reply lacks.

    Attributes:
        content_deficit: Share of the missing reward, in [0, 1].
        form_deficit: Likewise.
        p_content: Probability that content is missing, against form; about 0.5 if both are.
        missing_reward: 1 - the reply's reward.
        repaired: The repaired reply that shows the verdict, or None if no repair earned more than the reply.
        repaired_reward: The best reward after one repair, of content or of form.
        calls: Reward calls that this failure took.
        content_limit: Content deficit above which content counts as missing.
        form_limit: Form deficit above which form counts as missing.
    """

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"missing_reward": "stake", "repaired_reward": "single"}

    example_id: str
    content_deficit: float
    form_deficit: float
    p_content: float
    missing_reward: float
    verdict: VerdictName
    repaired: str | None
    repaired_reward: float
    calls: int
    content_limit: float = DEFAULTS.deficit_tolerance
    form_limit: float = DEFAULTS.deficit_tolerance

    @property
    def content_share(self) -> float:
        """Content's share of the two deficits; `p_content` if both are 0."""
        total = self.content_deficit + self.form_deficit
        return self.content_deficit / total if total > 0 else self.p_content


@dataclass(frozen=True)
class Need:
    """What a set of failures lacks together.

    Attributes:
        content: Share of the failures with this verdict; likewise `form` and `both`.
        p_content: Mean content share of the failures, weighted by their missing reward.
        missing_reward: Sum over the failures.
    """

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"missing_reward": "stake"}

    failures: int
    content: float
    form: float
    both: float
    p_content: float
    missing_reward: float


def attribute(
    failures: Sequence[Graded],
    reward: RewardFunction,
    *,
    known_good: Sequence[Graded] = (),
    style: Layout | None = None,
    settings: AttributionSettings = DEFAULTS,
) -> list[Attribution]:
    """Attribute each failure to content, form or both by counterfactual repair.

    Args:
        failures: Failing replies.
        reward: The reward, called about four times a failure.
        known_good: Replies that earned full reward (of demonstrations, of other rows); layouts are learnt from them.
        style: The reference style (`reference_style_of`), which counts as form.
        settings: Call limits and tolerances.

    Returns:
        One attribution per failure, in the order of the failures.

    Raises:
        RewardError: The reward fails; the message names the row.
    """
    good = [without_reference_style(each, style) for each in known_good]
    book = LayoutBook(good, settings.max_layouts, [each.reply for each in failures], style)
    cap = settings.max_calls_per_failure
    return [
        _attribute_one(without_reference_style(each, style), RewardProbe(each, reward, cap), book, settings)
        for each in failures
    ]


def need_of(attributions: Sequence[Attribution]) -> Need:
    """Sum up what the failures lack."""
    count, missing_reward = len(attributions), sum(each.missing_reward for each in attributions)
    verdicts = [each.verdict for each in attributions]
    content, form, both = (verdicts.count(name) / max(1, count) for name in ("content", "form", "both"))
    weighted = sum(each.content_share * each.missing_reward for each in attributions)
    share = weighted / missing_reward if missing_reward > 0 else 0.5
    return Need(count, content, form, both, share, missing_reward)


def repairable_rewards(graded: Sequence[Graded], attributions: Sequence[Attribution]) -> list[float]:
    """Reward of each row after its best single repair, in the order of `graded`; rows without one keep their reward."""
    repaired = {each.example_id: each.repaired_reward for each in attributions}
    return [max(row.score.value, repaired.get(row.example.id, 0.0)) for row in graded]


def verdict_of(content: float, form: float, content_limit: float, form_limit: float) -> VerdictName:
    """Return "both" if both deficits are above their limits, else the side with the larger deficit."""
    if content > content_limit and form > form_limit:
        return "both"
    return "content" if content >= form else "form"


def without_a_reference(failure: Graded) -> Attribution:
    """The attribution of a row without a reference: nobody knows the right content, so only form can be asked for."""
    own = failure.score.value
    return Attribution(failure.example.id, 0.0, 1.0, 0.0, max(0.0, 1.0 - own), "form", None, own, 0)


def _attribute_one(failure: Graded, ask: RewardProbe, book: LayoutBook, settings: AttributionSettings) -> Attribution:
    if not (failure.example.reference or "").strip():
        return without_a_reference(failure)
    own = failure.score.value
    missing_reward = max(0.0, 1.0 - own)
    repairs = repairs_of(failure, ask, book, settings)
    noise = settings.tolerance / missing_reward if missing_reward > 0 else 0.0
    limit = max(settings.deficit_tolerance, noise)
    content, form = _deficits(own, repairs, limit)
    # A deficit within the reward's noise says nothing, unless both are.
    if max(content, form) > noise:
        content, form = (deficit if deficit > noise else 0.0 for deficit in (content, form))
    limits = (limit if repairs.stated else max(settings.unstated_tolerance, noise), limit)
    if content + form > 0:
        verdict, share = verdict_of(content, form, *limits), p_content(content, form, *limits)
    else:  # either repair alone suffices
        verdict, share = ("form", 0.0) if repairs.stated else ("content", 1.0)
    best = max([own, *(repair[0] for repair in (repairs.content, repairs.form) if repair)])
    proof = _proof(verdict, repairs, own)
    return Attribution(
        failure.example.id, content, form, share, missing_reward, verdict, proof, best, ask.calls, *limits
    )


def _deficits(own: float, repairs: Repairs, limit: float) -> tuple[float, float]:
    """Content deficit and form deficit, each in [0, 1]."""

    def missing(repair: Repair | None) -> float:
        if repair is None or own >= 1.0:
            return 1.0
        return min(1.0, max(0.0, (1.0 - repair[0]) / (1.0 - own)))

    form = missing(repairs.content)
    if repairs.form is not None:
        return missing(repairs.form), form
    rise = 1.0 - form
    # If the answer is neither stated nor paid for by itself, the wrong form may hide wrong content.
    return (rise if rise > limit else 0.0 if repairs.stated else 1.0), form


def _proof(verdict: VerdictName, repairs: Repairs, own: float) -> str | None:
    """The repaired reply that shows the verdict; None if no repair earned more than the reply itself."""
    kinds = {"content": [repairs.content], "form": [repairs.form]}
    ranked = kinds.get(verdict, [repairs.both, repairs.content, repairs.form])
    paid = [repair for repair in ranked if repair is not None and repair[0] > own]
    return max(paid, key=lambda repair: repair[0])[1] if paid else None
