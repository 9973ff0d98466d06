"""The classifier as the loop uses it: repairs if reward calls are cheap, reward heads if they cost money.

Counterfactual repair (`tools/classifier/attribution.py`) calls the reward about four times a failure. A reward that is
declared costly is called for a few failures only, until a reply with full reward shows the layout; from then on two
reward heads (`tools/classifier/bradley_terry.py`) answer without a call. The noise of a reward is measured once, by
scoring a few replies twice.

If no single repair of a failure earned full reward, the heads' answer is averaged in as a second opinion.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from nslora.tools.classifier.attribution import (
    LARGEST_NOISE,
    Attribution,
    AttributionSettings,
    attribute,
    measure_tolerance,
)
from nslora.tools.classifier.bradley_terry import RewardHeads, blend, fit_heads
from nslora.tools.classifier.layouts import (
    Layout,
    align,
    bare,
    learn_layouts,
    reference_style_of,
    without_reference_style,
)
from nslora.tools.classifier.probability import p_content
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example

COSTLY_CALLS = 3  # per failure, of a costly reward while no layout is known
COSTLY_FAILURES = 8  # failures that are repaired then; the others get the mean of these


def classify_failures(
    failures: Sequence[Graded],
    reward: Reward,
    *,
    known_good: Sequence[Graded] = (),
    train: Sequence[Example] = (),
) -> list[Attribution]:
    """Attribute each failing reply to content, form or both.

    Args:
        failures: Failing replies.
        reward: The reward that scored them.
        known_good: Replies that earned full reward, from which layouts are learnt.
        train: Rows for the reference style and the reward heads; without them there are no heads.

    Returns:
        One attribution per failure, in the order of the failures.

    Raises:
        RewardError: The reward fails, or varies more than it declares; the message names the row.
    """
    if not failures:
        return []
    settings = AttributionSettings(tolerance=tolerance_of(reward, failures))
    style = reference_style_of(train or [each.example for each in failures])
    plain = [without_reference_style(each, style) for each in failures]
    if reward.costly:
        heads = _heads_for(plain, known_good, train, style)
        return _without_calls(plain, heads) if heads else _with_few_calls(failures, reward, settings, style)
    repairs = attribute(failures, reward, known_good=known_good, style=style, settings=settings)
    doubtful = [
        i
        for i, each in enumerate(repairs)
        if each.repaired_reward < settings.full_reward or each.repaired_reward <= 1.0 - each.missing_reward
    ]
    heads = _heads_for(plain, known_good, train, style) if doubtful else None
    if heads is not None:
        for i, second in zip(doubtful, heads.attribute([plain[i] for i in doubtful]), strict=True):
            repairs[i] = blend(repairs[i], second, weight=settings.heads_weight)
    return repairs


def tolerance_of(reward: Reward, graded: Sequence[Graded]) -> float:
    """Return the noise that the task declares or, if it declares none, the measured noise.

    The reward remembers the result, so that it is scored twice only once. The declared noise of a costly reward is
    believed without a call.

    Raises:
        RewardError: Two scores of one reply differ by more than the declared noise; the message names the row.
    """
    if reward.costly:
        return reward.noise or 0.0
    if reward.tolerance is None:
        allowed = LARGEST_NOISE if reward.noise is None else reward.noise
        measured = measure_tolerance(reward.fresh, graded, largest=allowed)
        reward.tolerance = measured if reward.noise is None else reward.noise
    return reward.tolerance


def _heads_for(
    plain: Sequence[Graded], known_good: Sequence[Graded], train: Sequence[Example], style: Layout | None
) -> RewardHeads | None:
    """Fit heads on the train rows; None if no layout is known or the references do not differ."""
    known_good = [without_reference_style(each, style) for each in known_good]
    layouts = learn_layouts(known_good, limit=1)
    if not layouts or not train:
        return None
    aligned = [align(each.reply, each.example.reference) for each in plain if each.example.reference]
    failing = list(dict.fromkeys(layout for layout in aligned if layout is not None))
    return fit_heads([bare(row, style) for row in train], layouts[0], failing=failing, known_good=known_good)


def _without_calls(failures: Sequence[Graded], heads: RewardHeads) -> list[Attribution]:
    """The heads' attributions, with the reward after one repair that their deficits predict."""
    return [
        replace(each, repaired_reward=1.0 - each.missing_reward * min(each.content_deficit, each.form_deficit))
        for each in heads.attribute(failures)
    ]


def _with_few_calls(
    failures: Sequence[Graded], reward: Reward, settings: AttributionSettings, style: Layout | None
) -> list[Attribution]:
    """Repair a few failures with few calls each; the others get the mean of these."""
    few = settings.model_copy(update={"max_calls_per_failure": min(COSTLY_CALLS, settings.max_calls_per_failure)})
    # At equal distances, since the first rows of a sorted file would be alike.
    count = min(COSTLY_FAILURES, len(failures))
    chosen = [failures[i * len(failures) // count] for i in range(count)]
    asked = attribute(chosen, reward, style=style, settings=few)
    content = sum(each.content_deficit for each in asked) / count
    form = sum(each.form_deficit for each in asked) / count
    limit = max(settings.deficit_tolerance, settings.tolerance)
    share = p_content(content, form, limit, limit) if content + form else 0.5
    common = statistics.mode(each.verdict for each in asked)
    known = {each.example_id: each for each in asked}

    def assumed(failure: Graded) -> Attribution:
        row, own = failure.example.id, failure.score.value
        return Attribution(row, content, form, share, max(0.0, 1.0 - own), common, None, own, 0)

    return [known.get(each.example.id) or assumed(each) for each in failures]
