"""What a run is likely to cost: tokens by formula, seconds from a measured speed with its uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

from nslora.tools.schema import Kind

# Cost of a kind before it ran, in tokens that go forward through the whole model: a step of training counts three
# times its tokens (forward and backward), and with LoRA on the top third and a frozen trunk a third of that remains.
TRAINING_COST_PER_TOKEN = 1.0
GENERATION_COST_PER_TOKEN = 1.0
# Seconds of a trained token against one that only goes forward: 1 where trunk and backward pass are spared, 3.5 with
# every block trained and the optimizer's step.
TRAINED_AGAINST_FORWARD = (1.0, 3.5)
# The first rounds of a run pay for the most: a run that needs anything takes at least two updates.
LEAST_UPDATES = 2


@dataclass(frozen=True)
class Speed:
    """Measured on an evaluation. reply_s: seconds a reply, of each batch; forward_tokens_s: tokens scored a second."""

    reply_s: tuple[float, ...]
    forward_tokens_s: float

    @property
    def reply_bounds_s(self) -> tuple[float, float]:
        """Seconds a reply of the fastest and the slowest batch; of a single batch, a third less and a half more."""
        low, high = min(self.reply_s), max(self.reply_s)
        return (low, high) if len(self.reply_s) > 1 else (low / 1.5, high * 1.5)


@dataclass(frozen=True)
class Cost:
    """Tokens through the model, and between how many and how many seconds they take."""

    what: str
    tokens: int
    seconds: tuple[float, float]


def update_tokens(train_rows: int, epochs: int, reply_tokens: int) -> dict[Kind, float]:
    """Tokens through the model that one update of each kind takes, before it ran.

    By formula and not by the clock, or the same seed would decide otherwise on a busy machine.
    """
    return {
        "lora": TRAINING_COST_PER_TOKEN * train_rows * epochs * reply_tokens,
        "textgrad": GENERATION_COST_PER_TOKEN * train_rows * reply_tokens,
    }


def trained(what: str, rows_tokens: Sequence[int], epochs: int, speed: Speed) -> Cost:
    """A training job. rows_tokens: prompt and completion of each row."""
    tokens = sum(rows_tokens) * epochs
    low, high = (factor * tokens / speed.forward_tokens_s for factor in TRAINED_AGAINST_FORWARD)
    return Cost(what, tokens, (low, high))


def generated(what: str, replies: int, reply_tokens: float, speed: Speed) -> Cost:
    """So many replies."""
    low, high = speed.reply_bounds_s
    return Cost(what, round(replies * reply_tokens), (replies * low, replies * high))


def whole_run(job: Cost, edit: Cost, evaluation: Cost, test: Cost, max_rounds: int) -> Cost:
    """From two cheap updates to as many dear ones as there are rounds, each evaluated; then the test split, twice."""
    few = min(max_rounds, LEAST_UPDATES)
    low = few * min(job.seconds[0], edit.seconds[0]) + (few + 1) * evaluation.seconds[0] + test.seconds[0]
    high = max_rounds * max(job.seconds[1], edit.seconds[1]) + (max_rounds + 1) * evaluation.seconds[1]
    tokens = few * max(job.tokens, edit.tokens) + (few + 1) * evaluation.tokens + test.tokens
    return Cost(f"a run of up to {max_rounds} rounds", tokens, (low, high + test.seconds[1]))
