"""The cost of a run before it happens: the only cost model.

The router compares the kinds of update by `update_tokens`. `nslora diagnose` shows `step_costs` and `whole_run` at a
speed that it measured on this machine, `nslora run --dry-run` at the speed of the embedded model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nslora.tools.schema import Kind
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.settings import RunSettings

# Seconds per trained token over seconds per scored token: 1 if LoRA on the top blocks spares the trunk and the backward
# pass through it, 3.5 with every block trained and the optimizer's step.
TRAINED_OVER_SCORED = (1.0, 3.5)
# SmolLM2-135M-Instruct on two CPU cores, in tokens per second, including the prompts of the replies. Other machines
# differ by about this factor.
EMBEDDED_GENERATED_PER_S, EMBEDDED_TRAINED_PER_S, UNCERTAINTY = 40.0, 400.0, 3.0
SHORTEST_REPLY = 1 / 4  # of max_new_tokens, on average over the replies of a task
LEAST_UPDATES = 2  # of a run that needs anything


@dataclass(frozen=True)
class Speed:
    """Seconds per reply and seconds per trained token, each as (fastest, slowest)."""

    reply_s: tuple[float, float]
    trained_token_s: tuple[float, float]

    @classmethod
    def measured(cls, reply_s: Sequence[float], scored_per_s: float) -> Speed:
        """The speed of an evaluation on this machine.

        Args:
            reply_s: Seconds per reply of each batch. A single batch counts as a third faster to a half slower.
            scored_per_s: Tokens per second of a forward pass over known replies.
        """
        low, high = min(reply_s), max(reply_s)
        fastest, slowest = TRAINED_OVER_SCORED
        return cls(
            (low, high) if len(reply_s) > 1 else (low / 1.5, high * 1.5),
            (fastest / scored_per_s, slowest / scored_per_s),
        )

    @classmethod
    def embedded(cls, max_new_tokens: int) -> Speed:
        """The speed of the embedded model on two CPU cores, uncertain by the factor `UNCERTAINTY`."""
        slowest = max_new_tokens / EMBEDDED_GENERATED_PER_S
        return cls((SHORTEST_REPLY * slowest, slowest), (1 / EMBEDDED_TRAINED_PER_S, 1 / EMBEDDED_TRAINED_PER_S))


@dataclass(frozen=True)
class Cost:
    """A step of a run: its tokens through the model, and its seconds as (least, most)."""

    what: str
    tokens: int
    seconds: tuple[float, float]


class StepCosts(NamedTuple):
    """The cost of each step. test: of the base and of the result."""

    job: Cost
    edit: Cost
    evaluation: Cost
    test: Cost


def evaluation_rows(task: Task, settings: RunSettings) -> int:
    """Replies that one evaluation takes, without the regression set."""
    return len(task.validation) + min(settings.train_sample, len(task.train))


def update_tokens(task: Task, settings: RunSettings) -> dict[Kind, float]:
    """Tokens through the model that one update of each kind takes, if each row has `max_new_tokens`.

    A formula and not a measurement, so that the same seed decides alike on a busy machine. A trained token counts as a
    generated one: training counts three times its tokens (forward and backward), and LoRA on the top third of the
    blocks over a frozen trunk leaves a third of that.
    """
    longest = float(task.max_new_tokens)
    return {
        "lora": len(task.train) * longest * settings.lora.epochs,
        "textgrad": remade_questions(task, settings) * longest,
    }


def remade_questions(task: Task, settings: RunSettings) -> int:
    """Train questions that an edit answers anew, at most."""
    rows = len(task.train)
    return rows if settings.remade_rows is None else min(rows, settings.remade_rows)


def step_costs(
    task: Task, settings: RunSettings, speed: Speed, *, epoch_tokens: float, reply_tokens: float
) -> StepCosts:
    """The cost of each step of a run.

    Args:
        task: The task.
        settings: The settings of the run.
        speed: Measured or known speed.
        epoch_tokens: Tokens of all train rows, prompts and completions together.
        reply_tokens: Mean tokens of a reply.
    """
    low, high = speed.reply_s

    def replies(what: str, least: int, most: int) -> Cost:
        return Cost(what, round(least * reply_tokens), (least * low, most * high))

    rows, evaluated, tested = remade_questions(task, settings), evaluation_rows(task, settings), 2 * len(task.test)
    trained = round(epoch_tokens * settings.lora.epochs)
    fastest, slowest = speed.trained_token_s
    return StepCosts(
        Cost("one LoRA update", trained, (trained * fastest, trained * slowest)),
        # The base answers all rows, and the adapter in force those that the base failed.
        replies("one edit of the prompt, with its remade data (the editor's own cost aside)", rows, 2 * rows),
        replies("one evaluation", evaluated, evaluated),
        replies("the test split, base and result", tested, tested),
    )


def whole_run(steps: StepCosts, settings: RunSettings) -> Cost:
    """The cost of a run: from two cheap updates to `max_rounds` expensive ones, each evaluated, then the test.

    `max_train_tokens` limits the training jobs among them.
    """
    job, edit, evaluation, test = steps
    most, cap = settings.max_rounds, settings.max_train_tokens
    few = min(most, LEAST_UPDATES)
    most_jobs = most if cap is None else min(most, cap / max(1, job.tokens))
    low = few * min(job.seconds[0], edit.seconds[0]) + (few + 1) * evaluation.seconds[0] + test.seconds[0]
    high = most * edit.seconds[1] + most_jobs * max(0.0, job.seconds[1] - edit.seconds[1])
    high += (most + 1) * evaluation.seconds[1] + test.seconds[1]
    tokens = few * max(job.tokens, edit.tokens) + (few + 1) * evaluation.tokens + test.tokens
    return Cost(f"a run of up to {most} rounds", tokens, (low, high))
