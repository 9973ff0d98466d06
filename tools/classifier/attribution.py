"""The reward-based classifier: does a failing reply lack content, form, or both?

It changes the reply (counterfactual repair, this project's own) and asks the reward about each change. It reads only
the `value` of a score, never the names, kinds or suggestions of checks.

    missing reward   1 - the reply's reward
    content deficit  share of the missing reward that is still missing after a repair of the form only
    form deficit     share of the missing reward that is still missing after a repair of the content only
    p_content        probability that content is missing, against form (`tools/classifier/probability.py`)
    verdict          both if both deficits are above their limits, else the larger one

A form repair puts the reply's own answer into the layout of replies that earned full reward. A content repair puts the
reference in the place of the reply's own answer. If no layout is known, the content deficit follows from the content
repair (did the reward rise?) and from whether the reply states the reference. A failure costs about four reward calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from nslora.tools.classifier.counterfactuals import DEFAULTS, AttributionSettings, Repair, Repairs, repairs_of
from nslora.tools.classifier.layouts import Layout, LayoutBook
from nslora.tools.classifier.probability import p_content
from nslora.tools.classifier.reference_style import without_reference_style
from nslora.tools.classifier.reward_probe import RewardFunction, RewardProbe
from nslora.tools.rewards.score import Graded

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
        RewardError: The reward raises, or returns no number in [0, 1]; the message names the row.
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
