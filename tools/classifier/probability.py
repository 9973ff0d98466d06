"""From deficits to P(content).

A deficit is a share of the missing reward, and rewards pay unequally: under similarity to a JSON object a wrong year
costs a tenth of what the wrong form costs, and is missing all the same. So P(content) is not their ratio but that of
two probabilities, each counted from the deficit L at which the classifier calls its side missing (this project's own):

    P(missing) = sigmoid(STEEPNESS * (logit(deficit) - logit(L)))
    P(content) = P(content missing) / (P(content missing) + P(form missing))

`both` is near a half then, whatever the reward pays for each.
"""

import math

LEAST_DEFICIT = 0.005  # a deficit of exactly 0 or 1 is one row's evidence, no certainty
STEEPNESS = 2.0  # calibration on the benchmark's tuned styles is flat from 1.5 to 5


def logit(share: float) -> float:
    clipped = min(1 - LEAST_DEFICIT, max(LEAST_DEFICIT, share))
    return math.log(clipped / (1 - clipped))


def sigmoid(logits: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logits))))


def chance_missing(deficit: float, limit: float) -> float:
    """Probability that this side is missing; a half at the limit."""
    return sigmoid(STEEPNESS * (logit(deficit) - logit(limit)))


def p_content(content: float, form: float, content_limit: float, form_limit: float) -> float:
    """P(content) of two deficits, in [0, 1]."""
    one, other = chance_missing(content, content_limit), chance_missing(form, form_limit)
    return one / (one + other)
