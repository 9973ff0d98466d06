"""What a run may spend, what it has spent, and what the next step may take. Pure functions over plain numbers.

A step is reserved before it begins: it starts only where its largest expected cost, and what must still follow it, fit
into what is left. Editor calls are reserved one by one, in tools/editor/calls.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nslora.tools.evaluation.acceptance import smallest_detectable_gain
from nslora.tools.inference.flops import TERA
from nslora.tools.inference.weights import EMBEDDED_HUB_ID, EMBEDDED_NAME
from nslora.tools.schema import Kind
from nslora.tools.tasks.task import Task, same_question
from nslora.tools.workspace.settings import RunSettings

SAFETY = 1.25  # on measured seconds: the same step takes longer on a busy machine
CHARACTERS_PER_TOKEN = 3.5  # of English and JSON under today's tokenizers, for estimates before a model is loaded
CHAT_TOKENS = 30  # that a chat template adds around a question and its reply
DEMONSTRATIONS = 2  # which an edit usually adds to the prompt
# SmolLM2-135M-Instruct on two CPU cores, tokens per second, prompts of replies included; other machines and models
# differ, hence the factor of uncertainty.
EMBEDDED_GENERATED_PER_S, EMBEDDED_TRAINED_PER_S, UNCERTAINTY = 40.0, 400.0, 3.0
WANTED_GAIN = 0.1  # in reward; what most people would call worth a run


@dataclass(frozen=True)
class Spent:
    """What a run has used up, over all its processes. cost: in the currency of the price table."""

    seconds: float = 0.0
    train_tokens: int = 0
    editor_calls: int = 0
    editor_tokens: int = 0
    cost: float = 0.0
    tflop: float = 0.0


@dataclass(frozen=True)
class Expected:
    """What steps are expected to take: seconds from what was measured in this run, compute by formula.

    update_tflop: most model compute of an update with its evaluation; of a training job, that of a single epoch.
    """

    evaluate_s: float
    finish_s: float
    update_s: Mapping[Kind, float]
    update_tflop: Mapping[Kind, float] = field(default_factory=dict)


def spent_of(rounds: Sequence[Mapping[str, Any]], wall_s: float, start_flop: float = 0.0) -> Spent:
    """Sums over the records of the rounds. start_flop: of the evaluation before the first one."""
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
    rounds: Sequence[Mapping[str, Any]],
    evaluation_s: float,
    evaluation_rows: int,
    train_rows: int,
    test_rows: int,
    epochs: int,
) -> Expected:
    """Expected seconds per step. evaluation_s: of the longest evaluation so far, over `evaluation_rows` replies.

    A kind that ran is expected to take as long as its longest update; one that did not is guessed from the seconds per
    reply: a row is trained on `epochs` times, or answered twice.
    """
    per_reply_s = evaluation_s / max(1, evaluation_rows)
    guesses: dict[Kind, float] = {
        "lora": per_reply_s * train_rows * epochs / 2,
        "textgrad": per_reply_s * train_rows * 2,
    }
    update_s: dict[Kind, float] = {}
    for kind, guess in guesses.items():
        measured = [float(each["wall_s"]) for each in rounds if each["action"] == kind]
        update_s[kind] = SAFETY * max(measured, default=guess)
    return Expected(SAFETY * evaluation_s, SAFETY * per_reply_s * 2 * test_rows, update_s)


def blocked(settings: RunSettings, spent: Spent, expected: Expected, tokens_per_epoch: int) -> dict[Kind, str]:
    """The kinds of update that the budget no longer allows, with the reason in words.

    tokens_per_epoch: of one epoch over all train rows, the least that a training job may need.
    """
    reasons: dict[Kind, str] = {}
    if settings.max_train_tokens is not None and spent.train_tokens + tokens_per_epoch > settings.max_train_tokens:
        reasons["lora"] = (
            f"{spent.train_tokens} of {settings.max_train_tokens} train tokens are spent, and one epoch "
            f"takes up to {tokens_per_epoch}"
        )
    calls, cap = settings.editing.failures + 1, settings.editing.max_calls
    if cap is not None and spent.editor_calls + calls > cap:
        reasons["textgrad"] = f"{spent.editor_calls} of {cap} editor calls are spent, and an edit takes {calls}"
    if settings.editing.max_tokens is not None and spent.editor_tokens >= settings.editing.max_tokens:
        reasons["textgrad"] = f"all {settings.editing.max_tokens} editor tokens are spent"
    if settings.editing.max_cost is not None and spent.cost >= settings.editing.max_cost:
        reasons["textgrad"] = f"all of the editor's {settings.editing.max_cost:g} are spent"
    for kind, needed in expected.update_tflop.items():
        if settings.max_tflop is not None and spent.tflop + needed > settings.max_tflop:
            reasons[kind] = (
                f"{spent.tflop:.3g} of {settings.max_tflop:g} TFLOP are spent, and this update with its "
                f"evaluation takes up to {needed:.3g}"
            )
    if settings.max_seconds is not None:
        for kind, update_s in expected.update_s.items():
            needed = update_s + expected.evaluate_s + expected.finish_s
            if spent.seconds + needed > settings.max_seconds:
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
    """How many epochs of a job fit into what is left, its evaluation reserved; at most those of the settings."""
    epochs = settings.lora.epochs
    if settings.max_train_tokens is not None:
        epochs = min(epochs, (settings.max_train_tokens - spent.train_tokens) // max(1, tokens_per_epoch))
    if settings.max_tflop is not None and tflop_per_epoch > 0:
        left = settings.max_tflop - spent.tflop - evaluation_tflop
        epochs = min(epochs, math.floor(left / tflop_per_epoch))
    return max(0, epochs)


@dataclass(frozen=True)
class RunPlan:
    """What a run would do, before anything is spent: (what, how much) in words, and what should be said before it."""

    lines: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def plan_of(task: Task, settings: RunSettings) -> RunPlan:
    """The plan of a run, and what should be said before it."""
    rows, rounds = len(task.train), settings.max_rounds
    looked_at = len(task.validation) + min(settings.train_sample, rows)
    bare = row_tokens(task)
    job = round(rows * settings.lora.epochs * bare), round(rows * settings.lora.epochs * bare * (1 + DEMONSTRATIONS))
    replies = looked_at + len(task.test), (rounds + 1) * looked_at + rounds * 2 * rows + 2 * len(task.test)
    generated = replies[0] * task.max_new_tokens // 4, replies[1] * task.max_new_tokens
    trained, calls = rounds * job[1], rounds * most_calls(settings)
    if settings.max_train_tokens is not None:
        trained = min(trained, settings.max_train_tokens)
    if settings.editing.max_calls is not None:
        calls = min(calls, settings.editing.max_calls)
    return RunPlan(
        lines=(
            ("task", f"{task.name}: {rows} train, {len(task.validation)} validation, {len(task.test)} test rows"),
            ("rounds", f"at most {rounds}, chosen by {settings.strategy}; target reward {settings.target:g}"),
            ("generation", f"{replies[0]} to {replies[1]} replies, about {generated[0]} to {generated[1]} tokens"),
            ("training", f"0 to {trained} tokens; a full burst takes about {job[0]} to {job[1]}"),
            ("compute", "no cap" if settings.max_tflop is None else f"at most {settings.max_tflop:g} TFLOP"),
            ("editor", f"{settings.editor}: 0 to {calls} calls" + editor_caps(settings)),
            ("time", seconds_words(settings, generated, (0, trained))),
            ("gain", f"smallest that validation can tell from noise: {detectable(task, settings):.3f} in reward"),
        ),
        warnings=tuple(warnings_of(task, settings, job[0])),
    )


def most_calls(settings: RunSettings) -> int:
    """Editor calls of an edit whose every reply has to be asked for again, as often as that is done."""
    editing = settings.editing
    return (editing.failures + editing.candidates) * (1 + editing.retries)


def row_tokens(task: Task) -> float:
    """Tokens of a train row with its reply, estimated from its characters."""
    characters = sum(len(row.question) + len(row.reference or "") for row in task.train) / len(task.train)
    return (characters + len(task.prompt.render())) / CHARACTERS_PER_TOKEN + CHAT_TOKENS


def detectable(task: Task, settings: RunSettings) -> float:
    """Smallest mean gain over the start that can be a run's result, where a row that is won gains a whole check."""
    step = 1.0 if task.reward.combine == "all" or len(task.reward.checks) == 1 else 0.5
    return smallest_detectable_gain(len(task.validation), level=settings.keep.from_start, step=step)


def warnings_of(task: Task, settings: RunSettings, job_tokens: int) -> list[str]:
    """What a person should hear before the run."""
    found = []
    smallest = detectable(task, settings)
    if smallest > WANTED_GAIN:
        found.append(
            f"{len(task.validation)} validation rows cannot tell a gain below {smallest:.2f} from noise "
            f"(wanted: {WANTED_GAIN:g}): add validation rows, or expect smaller gains to be dropped."
        )
    for split in ("validation", "test"):
        rows = getattr(task, split)
        if (different := len({same_question(row.question) for row in rows})) < len(rows):
            found.append(
                f"The {len(rows)} rows of {split} ask {different} different questions: intervals and tests "
                "take each row for one of its own, and come out too sure. Keep one row of each question."
            )
    lengths = [len(row.reference) / CHARACTERS_PER_TOKEN for row in (*task.train, *task.validation) if row.reference]
    if long := sum(length > task.max_new_tokens for length in lengths):
        found.append(
            f"{long} of {len(lengths)} references of train and validation are longer than a reply may be, up "
            f"to about {max(lengths):.0f} tokens (max_new_tokens: {task.max_new_tokens}): raise "
            "max_new_tokens in task.yaml if right replies are as long."
        )
    if settings.max_train_tokens is not None and settings.max_train_tokens < job_tokens:
        found.append(
            f"max_train_tokens {settings.max_train_tokens} is less than one full burst (about "
            f"{job_tokens}): bursts will be shorter, or left out."
        )
    if settings.editing.max_calls is not None and settings.editing.max_calls <= settings.editing.failures:
        found.append(
            f"{settings.editing.max_calls} editor calls are too few for one edit, which takes "
            f"{settings.editing.failures + 1}."
        )
    return found


def editor_caps(settings: RunSettings) -> str:
    caps = {"tokens": settings.editing.max_tokens, "cost": settings.editing.max_cost}
    return "".join(f", at most {value:g} {name}" for name, value in caps.items() if value is not None)


def seconds_words(settings: RunSettings, generated: tuple[int, int], trained: tuple[int, int]) -> str:
    """Seconds, where a speed is known, with its uncertainty."""
    limit = f"; stops before {settings.max_seconds:.0f} s" if settings.max_seconds is not None else ""
    if settings.model not in (EMBEDDED_NAME, EMBEDDED_HUB_ID):
        return f"unknown before the first evaluation, for {settings.model}{limit}"
    least, most = (
        g / EMBEDDED_GENERATED_PER_S + t / EMBEDDED_TRAINED_PER_S for g, t in zip(generated, trained, strict=True)
    )
    return (
        f"about {least / 60:.0f} to {most / 60:.0f} minutes on two CPU cores, uncertain by a factor of "
        f"{UNCERTAINTY:g}{limit}"
    )
