"""Rows and failures of an evaluation, the failures attributed to content and form by the reward itself."""

from collections.abc import Sequence

from nslora.tools.classifier.attribution import repairable_rewards
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.evaluation.records import Failure, Row
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example


def measure(
    graded: Sequence[Graded],
    reward: Reward,
    known_good: Sequence[Graded],
    split: str,
    losses: Sequence[float | None] | None = None,
    train: Sequence[Example] = (),
) -> tuple[list[Row], list[Failure]]:
    """Rows and failures of one split, the failures attributed to content and form by the reward itself.

    train: rows that reward heads are fitted on, where the reward is costly or wavers.
    """
    failing = [each for each in graded if not each.score.passed]
    attributions = classify_failures(failing, reward, known_good=known_good, train=train)
    repaired_rewards = repairable_rewards(graded, attributions)
    rows = [
        Row(each.example.id, split, each.score.value, dict(each.score.checks), repaired_reward, loss)
        for each, repaired_reward, loss in zip(graded, repaired_rewards, losses or [None] * len(graded), strict=True)
    ]
    failures = [
        Failure(each.example.id, split, each.example.question, each.reply, each.score.feedback, attribution)
        for each, attribution in zip(failing, attributions, strict=True)
    ]
    return rows, failures


def regression_rows(graded: Sequence[Graded]) -> list[Row]:
    """Rows of the regression set: rewards alone, since nothing is to be learnt from them."""
    return [
        Row(each.example.id, "anchor", each.score.value, dict(each.score.checks), each.score.value, None)
        for each in graded
    ]
