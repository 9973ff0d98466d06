"""The classifier as the loop uses it: repairs where reward calls are cheap, reward heads where they cost money.

Counterfactual repair (`tools/classifier/attribution.py`) asks the reward about four times a failure. A reward that is
declared costly is asked about a few failures only, until a reply that earned full reward shows the layout; from then on
two reward heads (`tools/classifier/bradley_terry.py`) answer without a call. How firm the reward is is measured once,
by asking twice.

Where no single repair earned full reward, the heads' answer is averaged in as a second opinion; where one did, the
reward itself has spoken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nslora.tools.classifier.attribution import DEFAULTS, Attribution, AttributionSettings, attribute
from nslora.tools.classifier.bradley_terry import RewardHeads, blend, fit_heads
from nslora.tools.classifier.layouts import Layout, align, learn_layouts
from nslora.tools.classifier.probability import p_content
from nslora.tools.classifier.reference_style import bare, reference_style_of, without_reference_style
from nslora.tools.classifier.reward_probe import LARGEST_NOISE, measure_tolerance

if TYPE_CHECKING:
    from nslora.tools.rewards.reward import Reward
    from nslora.tools.rewards.score import Graded
    from nslora.tools.schema import Example

ASKED_TWICE = 5  # replies that are judged twice, to learn how firm a reward is
FIRM = 1e-9
COSTLY_CALLS = 3  # a failure, of a costly reward, while no layout is known
COSTLY_FAILURES = 8  # failures that are repaired then; the others are given their mean


def classify_failures(
    failures: Sequence[Graded],
    reward: Reward,
    *,
    known_good: Sequence[Graded] = (),
    train: Sequence[Example] = (),
    settings: AttributionSettings = DEFAULTS,
) -> list[Attribution]:
    """What each failing reply needs, in their order.

    known_good: replies that earned full reward, from which layouts are learnt. train: rows that reward heads are
    fitted on; without them there are none. Raises RewardError, with the row, where the reward misbehaves.
    """
    if not failures:
        return []
    settings = settings.model_copy(update={"tolerance": max(settings.tolerance, tolerance_of(reward, failures))})
    style = reference_style_of(train or [each.example for each in failures])
    plain = [without_reference_style(each, style) for each in failures]
    if reward.costly:
        heads = heads_for(plain, known_good, train, style)
        return without_calls(plain, heads) if heads else sparing(failures, reward, settings, style)
    repairs = attribute(failures, reward, known_good=known_good, style=style, settings=settings)
    full = 1.0 - settings.tolerance - FIRM
    open_ = [
        i
        for i, each in enumerate(repairs)
        if each.repaired_reward < full or each.repaired_reward <= 1.0 - each.missing_reward
    ]
    heads = heads_for(plain, known_good, train, style) if open_ and settings.heads_weight > 0 else None
    if heads is None:
        return repairs
    second = heads.attribute([plain[i] for i in open_])
    blended = dict(zip(open_, blend([repairs[i] for i in open_], second, weight=settings.heads_weight), strict=True))
    return [blended.get(i, each) for i, each in enumerate(repairs)]


def tolerance_of(reward: Reward, graded: Sequence[Graded]) -> float:
    """What the task declares, else what a few replies judged twice say; measured once and remembered by the reward.

    A costly reward is not asked twice: what it declares is believed. Raises RewardError, naming the row, where the
    reward changes its mind by more than it declares.
    """
    if reward.costly:
        return reward.noise or 0.0
    if reward.tolerance is None:
        allowed = LARGEST_NOISE if reward.noise is None else reward.noise
        measured = measure_tolerance(reward.fresh, graded, rows=ASKED_TWICE, largest=allowed)
        reward.tolerance = measured if reward.noise is None else reward.noise
    return reward.tolerance


def heads_for(
    failures: Sequence[Graded], known_good: Sequence[Graded], train: Sequence[Example], style: Layout | None = None
) -> RewardHeads | None:
    """Heads fitted on the train rows; None where no layout is known or the references do not differ.

    frame: of the references; those of the failures come without it.
    """
    known_good, train = (
        [without_reference_style(each, style) for each in known_good],
        [bare(row, style) for row in train],
    )
    layouts = learn_layouts(known_good, limit=1)
    if not layouts or not train:
        return None
    failing = [align(each.reply, each.example.reference) for each in failures if each.example.reference]
    return fit_heads(
        train,
        layouts[0],
        failing=list(dict.fromkeys(each for each in failing if each is not None)),
        known_good=known_good,
    )


def without_calls(failures: Sequence[Graded], heads: RewardHeads) -> list[Attribution]:
    """The heads' answers; the reward after one repair is what their deficits leave, since nobody asked the reward."""
    return [
        replace(each, repaired_reward=1.0 - each.missing_reward * min(each.content_deficit, each.form_deficit))
        for each in heads.attribute(failures)
    ]


def sparing(
    failures: Sequence[Graded], reward: Reward, settings: AttributionSettings, style: Layout | None = None
) -> list[Attribution]:
    """A few failures by repair, with few calls each; the others are given the mean of what those need."""
    few = settings.model_copy(update={"max_calls_per_failure": min(COSTLY_CALLS, settings.max_calls_per_failure)})
    asked = attribute(spread(failures, COSTLY_FAILURES), reward, style=style, settings=few)
    content = sum(each.content_deficit for each in asked) / len(asked)
    form = sum(each.form_deficit for each in asked) / len(asked)
    limit = max(settings.deficit_tolerance, settings.tolerance)
    share = p_content(content, form, limit, limit) if content + form else 0.5
    common = max({each.verdict for each in asked}, key=[each.verdict for each in asked].count)
    known = {each.example_id: each for each in asked}
    return [
        known.get(each.example.id)
        or Attribution(
            each.example.id, content, form, share, max(0.0, 1.0 - each.score.value), common, None, each.score.value, 0
        )
        for each in failures
    ]


def spread(graded: Sequence[Graded], count: int) -> list[Graded]:
    """So many of them at equal distances, for all: the first of a file that is sorted would be of one kind."""
    return [graded[i * len(graded) // count] for i in range(count)] if len(graded) > count else list(graded)
