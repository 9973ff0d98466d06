"""The reward-based classifier: does a failing reply need other content, another form, or both?

Counterfactual repair, this project's own: the reward itself is asked which repair it would pay for. Only `value` of a
score is read, never the checks' names, kinds or suggestions.

    content deficit  share of the missing reward still missing after mending the form only
    form deficit     share of the missing reward still missing after mending the content only
    p_content        the chance that content is missing against the chance that form is
    (`tools/classifier/probability.py`) stake            the missing reward verdict          both, where both deficits
    are above the tolerance, else the larger

Form repair: the reply's own span in a layout of replies that earned full reward. Content repair: the reference in
place of the reply's span. Where no layout is known, the content deficit comes from the content repair (did the reward
rise?) and from whether the reply states the reference. About four reward calls a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from nslora.tools.classifier.answer_core import WORD, shares_most
from nslora.tools.classifier.counterfactuals import AttributionSettings, Repairs, repairs_of
from nslora.tools.classifier.layouts import Layout, LayoutBook, core_of, states
from nslora.tools.classifier.probability import p_content
from nslora.tools.classifier.reference_style import without_reference_style
from nslora.tools.classifier.reward_probe import Asker, measure_tolerance

if TYPE_CHECKING:
    from nslora.tools.rewards.score import Graded, Score
    from nslora.tools.schema import Example

__all__ = [
    "Attribution",
    "AttributionSettings",
    "Need",
    "attribute",
    "measure_tolerance",
    "need_of",
    "repairable_rewards",
]

VerdictName = Literal["content", "form", "both"]


DEFAULTS = AttributionSettings()


@dataclass(frozen=True)
class Attribution:
    """What one failing reply needs. `repaired` is the reply that proves it; `single` the reward after one repair.

    Deficits are shares of the missing reward, and above their limits something is missing; p_content is a probability
    (of 0.5 where both are missing).
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
        """Share of the missing reward that weights could bring back, against what edits could."""
        total = self.content_deficit + self.form_deficit
        return self.content_deficit / total if total > 0 else self.p_content


@dataclass(frozen=True)
class Need:
    """Shares of the three verdicts among the failures; p_content is the content share of all the missing reward."""

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"missing_reward": "stake"}

    failures: int
    content: float
    form: float
    both: float
    p_content: float
    missing_reward: float


def attribute(
    failures: Sequence[Graded],
    reward: Callable[[Example, str], Score],
    *,
    known_good: Sequence[Graded] = (),
    style: Layout | None = None,
    settings: AttributionSettings = DEFAULTS,
) -> list[Attribution]:
    """One attribution per failure, in their order.

    known_good: replies that earned full reward (of demonstrations, of other rows); layouts are learnt from them.
    frame: what the references themselves have around their answers (`frame_of`); it counts as form. Raises
    RewardError, with the row, where the reward raises or returns no number in [0, 1].
    """
    shown = [without_reference_style(good, style) for good in known_good]
    layouts = LayoutBook(shown, settings.max_layouts, [each.reply for each in failures], style)
    for good in shown:
        layouts.cores.note(good.example.reference or "", core_of(good) or "")
    cap = settings.max_calls_per_failure
    return [
        _attribute_one(without_reference_style(each, style), Asker(each, reward, cap), layouts, settings)
        for each in failures
    ]


def need_of(attributions: Sequence[Attribution]) -> Need:
    """What the failures need, taken together."""
    count = len(attributions)
    missing_reward = sum(each.missing_reward for each in attributions)
    shares = {
        verdict: sum(each.verdict == verdict for each in attributions) / max(1, count)
        for verdict in ("content", "form", "both")
    }
    weighted = sum(each.content_share * each.missing_reward for each in attributions)
    share = weighted / missing_reward if missing_reward > 0 else 0.5
    return Need(count, shares["content"], shares["form"], shares["both"], share, missing_reward)


def repairable_rewards(graded: Sequence[Graded], attributions: Sequence[Attribution]) -> list[float]:
    """Reward of each row after its best single repair, in the order of `graded`; its own value where none is known."""
    repaired_reward: Mapping[str, float] = {each.example_id: each.repaired_reward for each in attributions}
    return [max(row.score.value, repaired_reward.get(row.example.id, 0.0)) for row in graded]


def _attribute_one(failure: Graded, ask: Asker, book: LayoutBook, settings: AttributionSettings) -> Attribution:
    own, row = failure.score.value, failure.example.id
    missing_reward = max(0.0, 1.0 - own)
    if failure.example.reference is None or not failure.example.reference.strip():
        # Without a reference, what would be right is not known: only the form can be asked for.
        return Attribution(row, 0.0, 1.0, 0.0, missing_reward, "form", None, own, 0)
    repairs = repairs_of(failure, failure.example.reference.strip(), ask, book, settings)
    noise = settings.tolerance / missing_reward if missing_reward > 0 else 0.0
    limit, stated = max(settings.deficit_tolerance, noise), _stated(failure, repairs, settings)
    content, form = _deficits(failure, repairs, limit, stated)
    # What lies within the reward's noise speaks for neither side, unless there is nothing else.
    if max(content, form) > noise:
        content, form = (deficit if deficit > noise else 0.0 for deficit in (content, form))
    limits = (limit if stated else max(settings.unstated_tolerance, noise), limit)
    verdict = _judge(content, form, *limits, stated)
    share = p_content(content, form, *limits) if content + form > 0 else float(verdict == "content")
    repaired_reward = max([own, *(found[0] for found in (repairs.content, repairs.form) if found)])
    return Attribution(
        row,
        content,
        form,
        share,
        missing_reward,
        verdict,
        _proof(verdict, repairs, own),
        repaired_reward,
        ask.calls,
        *limits,
    )


def _stated(failure: Graded, repairs: Repairs, settings: AttributionSettings) -> bool:
    """Whether the reply states the reference's core; where that is not known, most of the reference's own words.

    One that mentions it, and gives another answer where answers stand, does not state it.
    """
    if repairs.answers_otherwise:
        return False
    if repairs.rewritten or states(failure.reply, repairs.core):
        return True
    sentence = len(WORD.findall(repairs.core)) > settings.sentence_words
    return repairs.proof is None and sentence and shares_most(failure.reply, repairs.core, failure.example.question)


def _deficits(failure: Graded, repairs: Repairs, limit: float, stated: bool) -> tuple[float, float]:
    """(content deficit, form deficit), each in [0, 1]."""
    own: float = failure.score.value

    def missing(found: tuple[float, str] | None) -> float:
        if found is None or own >= 1.0:
            return 1.0
        return min(1.0, max(0.0, (1.0 - found[0]) / (1.0 - own)))

    form = missing(repairs.content)
    if repairs.form is not None:
        return missing(repairs.form), form
    rise = 1.0 - form
    if stated:
        return (rise if rise > limit else 0.0), form
    # Neither stated nor, by itself, paid for: wrong content hides behind the wrong form.
    return (rise if rise > limit else 1.0), form


def _judge(content: float, form: float, content_limit: float, form_limit: float, stated: bool) -> VerdictName:
    """The verdict of two deficits. Where either repair alone suffices, a stated reference speaks for form."""
    if content + form <= 0:
        return "form" if stated else "content"
    if content > content_limit and form > form_limit:
        return "both"
    return "content" if content >= form else "form"


def _proof(verdict: VerdictName, repairs: Repairs, own: float) -> str | None:
    """The reply that shows the verdict; None where no repair earned more than the reply itself."""
    ranked = {
        "content": [repairs.content],
        "form": [repairs.form],
        "both": [(1.0, repairs.proof) if repairs.proof is not None else None, repairs.content, repairs.form],
    }[verdict]
    paid = [found for found in ranked if found is not None and found[0] > own]
    return max(paid, key=lambda found: found[0])[1] if paid else None
