"""What a run may spend, what it has spent, and what the next step may take. Pure functions over plain numbers.

A step begins only if its largest expected cost, and the cost of the steps that must follow it, fit into what is left.
Editor calls are reserved one by one, in tools/editor/calls.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nslora.tools.evaluation.acceptance import fewest_wins, smallest_detectable_gain
from nslora.tools.inference.flops import TERA
from nslora.tools.inference.weights import EMBEDDED_HUB_ID, EMBEDDED_NAME
from nslora.tools.schema import Kind
from nslora.tools.tasks.splits import same_question
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.cost_estimate import (
    SHORTEST_REPLY,
    UNCERTAINTY,
    Speed,
    evaluation_rows,
    remade_questions,
    step_costs,
    whole_run,
)
from nslora.tools.workspace.settings import RunSettings

SAFETY = 1.25  # on measured seconds: the same step takes longer on a busy machine
CHARACTERS_PER_TOKEN = 3.5  # of English and JSON under today's tokenizers, for estimates before a model is loaded
CHAT_TOKENS = 30  # that a chat template adds around a question and its reply
DEMONSTRATIONS = 2  # that an edit usually adds to the prompt
WANTED_GAIN = 0.1  # in reward; what most people would call worth a run
SHORT_THINKING_TOKENS = 256  # with less room for a reply, thinking rarely comes to its end


@dataclass(frozen=True)
class Spent:
    """What a run has spent, over all its processes. cost: in the currency of the price table."""

    seconds: float = 0.0
    train_tokens: int = 0
    editor_calls: int = 0
    editor_tokens: int = 0
    cost: float = 0.0
    tflop: float = 0.0


@dataclass(frozen=True)
class Expected:
    """Expected cost of the next steps: seconds from this run's measurements, compute by formula.

    Attributes:
        evaluate_s: Seconds of an evaluation.
        finish_s: Seconds of the test split, for the base and the result.
        update_s: Seconds of an update of each kind.
        update_tflop: Most model compute of an update with its evaluation; of a training job, with a single epoch.
    """

    evaluate_s: float
    finish_s: float
    update_s: Mapping[Kind, float]
    update_tflop: Mapping[Kind, float] = field(default_factory=dict)


def spent_of(rounds: Sequence[Mapping[str, Any]], wall_s: float, start_flop: float = 0.0) -> Spent:
    """Sum what the rounds spent.

    Args:
        rounds: Records of the rounds.
        wall_s: Seconds of the run so far.
        start_flop: Model FLOPs of the evaluation before the first round.
    """
    editor = [each["editor"] for each in rounds]
    return Spent(
        wall_s,
        sum(each["trained_tokens"] for each in rounds),
        int(sum(each.get("calls", 0) for each in editor)),
        int(sum(each.get("input_tokens", 0) + each.get("output_tokens", 0) for each in editor)),
        float(sum(each.get("cost", 0.0) for each in editor)),
        (start_flop + sum(each["flop"] for each in rounds)) / TERA,
    )


def expected_seconds(
    rounds: Sequence[Mapping[str, Any]], evaluation_s: float, task: Task, settings: RunSettings
) -> Expected:
    """Expect each step to take as long as the longest one so far, times `SAFETY`.

    A kind that has not run yet is guessed from the seconds per reply: training on a row once takes half a reply, and
    an edit answers each row of its remade data twice.

    Args:
        rounds: Records of the rounds.
        evaluation_s: Seconds of the longest evaluation so far.
        task: The task.
        settings: The settings of the run.
    """
    per_reply_s = evaluation_s / evaluation_rows(task, settings)
    per_pass_s = per_reply_s * len(task.train)
    remade_s = per_reply_s * 2 * remade_questions(task, settings)
    update_s: dict[Kind, float] = {"lora": per_pass_s * settings.lora.epochs / 2, "textgrad": remade_s}
    for kind, guess in update_s.items():
        measured = [float(each["wall_s"]) for each in rounds if each["action"] == kind]
        update_s[kind] = SAFETY * max(measured, default=guess)
    return Expected(SAFETY * evaluation_s, SAFETY * per_reply_s * 2 * len(task.test), update_s)


def blocked(settings: RunSettings, spent: Spent, expected: Expected, tokens_per_epoch: int) -> dict[Kind, str]:
    """The kinds of update that the budget no longer allows, each with its reason in words.

    Args:
        settings: The settings, with the caps.
        spent: What the run has spent.
        expected: What the next steps are expected to take.
        tokens_per_epoch: Tokens of one epoch over all train rows, the least that a training job may need.
    """
    reasons: dict[Kind, str] = {}
    editing, cap = settings.editing.under(settings.protocol), settings.max_train_tokens
    if cap is not None and spent.train_tokens + tokens_per_epoch > cap:
        reasons["lora"] = (
            f"{spent.train_tokens} of {cap} train tokens are spent, and one epoch takes up to {tokens_per_epoch}"
        )
    calls, cap = editing.calls(), editing.max_calls
    if cap is not None and spent.editor_calls + calls > cap:
        reasons["textgrad"] = f"{spent.editor_calls} of {cap} editor calls are spent, and an edit takes {calls}"
    if editing.max_tokens is not None and spent.editor_tokens >= editing.max_tokens:
        reasons["textgrad"] = f"all {editing.max_tokens} editor tokens are spent"
    if editing.max_cost is not None and spent.cost >= editing.max_cost:
        reasons["textgrad"] = f"the editor has cost all of max_cost {editing.max_cost:g}"
    for kind, tflop in expected.update_tflop.items():
        if settings.max_tflop is not None and spent.tflop + tflop > settings.max_tflop:
            reasons[kind] = (
                f"{spent.tflop:.3g} of {settings.max_tflop:g} TFLOP are spent, and this update with its "
                f"evaluation takes up to {tflop:.3g}"
            )
    for kind, update_s in expected.update_s.items():
        needed = update_s + expected.evaluate_s + expected.finish_s
        if settings.max_seconds is not None and spent.seconds + needed > settings.max_seconds:
            reasons[kind] = (
                f"{spent.seconds:.3g} of {settings.max_seconds:g} seconds are spent, and this "
                f"update with its evaluation and the test takes about {needed:.3g}"
            )
    return reasons


def affordable_epochs(
    settings: RunSettings,
    spent: Spent,
    tokens_per_epoch: int,
    tflop_per_epoch: float = 0.0,
    evaluation_tflop: float = 0.0,
) -> int:
    """Epochs of a training job that the budget allows with the evaluation after it, at most those of the settings."""
    epochs = settings.lora.epochs
    if settings.max_train_tokens is not None:
        epochs = min(epochs, (settings.max_train_tokens - spent.train_tokens) // max(1, tokens_per_epoch))
    if settings.max_tflop is not None and tflop_per_epoch > 0:
        left = settings.max_tflop - spent.tflop - evaluation_tflop
        epochs = min(epochs, math.floor(left / tflop_per_epoch))
    return max(0, epochs)


@dataclass(frozen=True)
class RunPlan:
    """What a run would do and cost, before it spends anything: how much of what, in words, and warnings."""

    lines: Mapping[str, str]
    warnings: tuple[str, ...]


def plan_of(task: Task, settings: RunSettings) -> RunPlan:
    """The plan of a run, without loading a model."""
    rows, rounds, tested, longest = len(task.train), settings.max_rounds, len(task.test), task.max_new_tokens
    evaluated, editing = evaluation_rows(task, settings), settings.editing.under(settings.protocol)
    characters = sum(len(row.asked) + len(row.target or "") + len(task.prompt.render()) for row in task.train)
    bare = characters / CHARACTERS_PER_TOKEN + rows * CHAT_TOKENS
    speed, prompted = Speed.embedded(longest), bare * (1 + DEMONSTRATIONS)
    steps = step_costs(task, settings, speed, epoch_tokens=prompted, reply_tokens=longest)
    job = round(bare * settings.lora.epochs), steps.job.tokens
    replies = evaluated + tested, (rounds + 1) * evaluated + rounds * 2 * remade_questions(task, settings) + 2 * tested
    calls = rounds * editing.calls(editing.candidates or 1) * (1 + editing.retries)
    caps = {"tokens": editing.max_tokens, "cost": editing.max_cost}
    time = f"unknown before the first evaluation, for {settings.model}"
    if settings.model in (EMBEDDED_NAME, EMBEDDED_HUB_ID):
        least = steps.evaluation.seconds[0] + steps.test.seconds[0] / 2  # the test of the base alone
        most = whole_run(steps, settings).seconds[1]
        time = f"about {least / 60:.0f} to {most / 60:.0f} minutes on two CPU cores, uncertain by a factor of "
        time += f"{UNCERTAINTY:g}"
    lines = {
        "task": f"{task.name}: {rows} train, {len(task.validation)} validation, {tested} test rows",
        "rounds": f"at most {rounds}, chosen by {settings.strategy}; target reward {settings.target:g}",
        "generation": f"{replies[0]} to {replies[1]} replies, about {round(replies[0] * longest * SHORTEST_REPLY)} to "
        f"{replies[1] * longest} tokens",
        "training": f"0 to {_capped(rounds * job[1], settings.max_train_tokens)} tokens; "
        f"a full training job takes about {job[0]} to {job[1]}",
        "compute": "no cap" if settings.max_tflop is None else f"at most {settings.max_tflop:g} TFLOP",
        "editor": f"{settings.editor}: 0 to {_capped(calls, editing.max_calls)} calls"
        + "".join(f", at most {cap:g} {name}" for name, cap in caps.items() if cap is not None),
        **({"judge": judging} if (judging := _judging(task, settings, replies)) else {}),
        "time": time + ("" if settings.max_seconds is None else f"; stops before {settings.max_seconds:.0f} s"),
        "gain": f"smallest that validation can tell from noise: {_detectable(task, settings):.3f} in reward",
    }
    return RunPlan(lines, tuple(_warnings(task, settings, job[0])))


def _judging(task: Task, settings: RunSettings, replies: tuple[int, int]) -> str:
    """The calls of each judge for so many replies (fewest, most); those of failing rows take their reference too."""
    references = len(task.train) + len(task.test)
    cap = settings.judging.max_calls
    return "; ".join(
        f"{check.name} ({check.judge}): {_capped(replies[0] * check.most_calls, cap)} to "
        f"{_capped((replies[1] + references) * check.most_calls, cap)} calls, at most {check.at_once} at once"
        for check in task.reward.judges
    )


def _capped(most: int, cap: int | None) -> int:
    return most if cap is None else min(most, cap)


def _detectable(task: Task, settings: RunSettings) -> float:
    """Smallest mean gain over the start that can be a run's result, if each won row gains one check."""
    step = 1.0 if task.reward.combine == "all" or len(task.reward.checks) == 1 else 0.5
    return smallest_detectable_gain(len(task.validation), level=settings.keep.from_start, step=step)


def _warnings(task: Task, settings: RunSettings, job_tokens: int) -> list[str]:
    """What the user should know before the run."""
    found = list(task.notes)
    smallest = _detectable(task, settings)
    if smallest > WANTED_GAIN:
        none = len(task.validation) < fewest_wins(settings.keep.from_start)
        gain, rest = ("any gain", "every update") if none else (f"a gain below {smallest:.2f}", "smaller gains")
        found.append(
            f"{len(task.validation)} validation rows cannot tell {gain} from noise (wanted: {WANTED_GAIN:g}): "
            f"add validation rows, or expect {rest} to be dropped."
        )
    for split, rows in (("validation", task.validation), ("test", task.test)):
        if (different := len({same_question(row.asked) for row in rows})) < len(rows):
            found.append(
                f"The {len(rows)} rows of {split} ask {different} different questions: intervals and tests "
                "count each row as independent, so they are too narrow. Keep one row of each question."
            )
    lengths = [len(row.reference) / CHARACTERS_PER_TOKEN for row in (*task.train, *task.validation) if row.reference]
    if long := sum(length > task.max_new_tokens for length in lengths):
        found.append(
            f"{long} of {len(lengths)} references of train and validation are longer than a reply may be, up "
            f"to about {max(lengths):.0f} tokens (max_new_tokens: {task.max_new_tokens}): raise "
            "max_new_tokens in task.yaml if right replies are as long."
        )
    thinking = [row for row in task.train if row.thinking]
    if thinking and settings.thinking == "off":
        found.append(
            f"{len(thinking)} references of train begin with thinking (<think>). If the model's chat template writes "
            "thinking, weights learn only the answers; --thinking on teaches both."
        )
    if settings.thinking == "on" and task.max_new_tokens < SHORT_THINKING_TOKENS:
        found.append(
            f"thinking is on, and a reply may take {task.max_new_tokens} tokens with its thinking (max_new_tokens in "
            "task.yaml): a reply that ends inside its thinking counts as empty."
        )
    found += task.reward.remarks((*task.train, *task.validation, *task.test))
    if settings.max_train_tokens is not None and settings.max_train_tokens < job_tokens:
        found.append(
            f"max_train_tokens {settings.max_train_tokens} is less than one full training job (about "
            f"{job_tokens}): jobs will be shorter, or left out."
        )
    needed, calls = settings.editing.under(settings.protocol).calls(), settings.editing.max_calls
    if calls is not None and calls < needed:
        found.append(f"{calls} editor calls are too few for one edit, which takes {needed}.")
    return found
