"""The probability that a failure lacks content, from its two deficits (this project's own).

A deficit is a share of the missing reward, and a reward may pay unequally for content and form: under similarity to a
JSON object, a wrong year costs a tenth of what the wrong form costs. The ratio of the two deficits would then call the
year unimportant. So each deficit is first compared with the limit L above which the classifier says "missing":

    P(missing) = sigmoid(STEEPNESS * (logit(deficit) - logit(L)))
    P(content) = P(content missing) / (P(content missing) + P(form missing))

If both are missing, P(content) is near 0.5, whatever the reward pays for each.
"""

import math

LEAST_DEFICIT = 0.005  # one row with a deficit of exactly 0 or 1 proves nothing for certain
STEEPNESS = 2.0  # calibration on the benchmark's tuned styles is flat from 1.5 to 5


def sigmoid(logits: float) -> float:
    """Logistic function; logits are clipped to [-30, 30] so that exp cannot overflow."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logits))))


def _logit(share: float) -> float:
    clipped = min(1 - LEAST_DEFICIT, max(LEAST_DEFICIT, share))
    return math.log(clipped / (1 - clipped))


def chance_missing(deficit: float, limit: float) -> float:
    """Probability that content (or form) is missing, given its deficit; 0.5 at the limit."""
    return sigmoid(STEEPNESS * (_logit(deficit) - _logit(limit)))


def p_content(content: float, form: float, content_limit: float, form_limit: float) -> float:
    """Probability in [0, 1] that content is what a failure lacks.

    Args:
        content: Content deficit, a share of the missing reward in [0, 1].
        form: Form deficit, likewise.
        content_limit: Content deficit above which content counts as missing.
        form_limit: Form deficit above which form counts as missing.
    """
    one, other = chance_missing(content, content_limit), chance_missing(form, form_limit)
    return one / (one + other)
