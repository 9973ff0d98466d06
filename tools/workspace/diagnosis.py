"""Diagnosis before any training: measure the base model, classify its failures, bound the gain of each kind of update.

The upper bounds come from the classifier's repairs. If the content of every failure is mended and its form stays, the
reward of a row is 1 - missing reward * form deficit. If the form is mended and the content stays, it is
1 - missing reward * content deficit.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from nslora.tools.classifier.attribution import Attribution, Need, need_of
from nslora.tools.errors import TaskError
from nslora.tools.evaluation.acceptance import smallest_detectable_gain
from nslora.tools.evaluation.paired_tests import REWARDS, TIE, bootstrap_interval, mean
from nslora.tools.evaluation.records import Failure, Row
from nslora.tools.evaluation.rollouts import ask, grade, measure, reference_losses
from nslora.tools.inference.context_length import refuse_long_questions
from nslora.tools.inference.reply_cache import ReplyCache, token_counts
from nslora.tools.policy import OnProgress, Policy, no_progress
from nslora.tools.rewards.score import Graded, check_means
from nslora.tools.router.inputs import RouterInput
from nslora.tools.router.monitoring_signal import progress_of
from nslora.tools.router.strategies import strategy_named
from nslora.tools.schema import KINDS, Example, answered
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.cost_estimate import Cost, Speed, step_costs, update_tokens, whole_run
from nslora.tools.workspace.reply_log import suggestions
from nslora.tools.workspace.settings import RunSettings

TRAIN_ROWS = 120  # of train that are looked at; more would not change the diagnosis
TIMED_ROWS = 8  # replies that are generated for their speed alone, if all replies came from the cache
EXAMPLES = 2  # per verdict

Advice = Literal["no change", "weights", "prompt"]
Repair = Literal["content", "form", "both"]
REPAIRS: tuple[Repair, ...] = ("content", "form", "both")


@dataclass(frozen=True)
class Bound:
    """Reward and paired gain on validation if one kind of repair succeeded on every failure. interval: 95 %."""

    repair: Repair
    reward: float
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        train_rows: Train rows that were looked at.
        reward: Mean reward on validation; interval: its 95 % bootstrap interval.
        all_checks: Share of validation rows that pass all checks.
        loss_nats: Mean loss of the validation references, nats per token; None without references.
        need: Of the failures on validation; train_need: of those on train.
        level: Level at which a gain counts.
        smallest_detectable: Smallest gain in mean reward that the validation rows can show at this level.
        advice: What to do first; reason: why.
    """

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"need": "demand", "train_need": "train_demand"}

    task: str
    model: str
    train_rows: int
    validation_rows: int
    reward: float
    interval: tuple[float, float]
    all_checks: float
    checks: dict[str, float]
    train_reward: float
    loss_nats: float | None
    need: Need
    train_need: Need
    examples: tuple[Failure, ...]
    bounds: tuple[Bound, ...]
    level: float
    smallest_detectable: float
    costs: tuple[Cost, ...]
    reward_calls: int
    advice: Advice
    reason: str


def diagnose(
    task: Task,
    policy: Policy,
    *,
    cache: ReplyCache | None = None,
    on_progress: OnProgress = no_progress,
) -> Diagnosis:
    """Measure the base model on train and validation. Trains nothing, calls no editor, does not look at test.

    Args:
        task: The task.
        policy: The model.
        cache: Known replies.
        on_progress: Called with replies done and wanted.

    Raises:
        TaskError: The task has an agent.
        RewardError: The reward raised or returned no number in [0, 1]; the message names the row.
        TooLongError: A question does not fit into the model's context.
    """
    if task.agent:
        raise TaskError(
            f"{task.name} has an agent, and a diagnosis measures tasks of one call: nslora check shows trajectories, "
            "and a run with --max-rounds 1 measures it."
        )
    settings = RunSettings()
    calls = task.reward.calls
    chosen = set(random.Random(settings.seed).sample(range(len(task.train)), min(TRAIN_ROWS, len(task.train))))
    train = [row for i, row in enumerate(task.train) if i in chosen]
    refuse_long_questions(
        {"train": train, "validation": task.validation},
        task.prompt,
        context_tokens=policy.context_tokens,
        max_new_tokens=task.max_new_tokens,
        count=lambda dialogues: token_counts(policy, cache, dialogues),
    )
    graded, reply_s, reply_tokens = _measured(task, policy, train, cache, on_progress)
    started = time.perf_counter()
    losses, scored_tokens = reference_losses(policy, None, task.prompt, task.validation, adapter=None)
    scored_per_s = scored_tokens / max(1e-9, time.perf_counter() - started)
    on_validation, on_train = graded[: len(task.validation)], graded[len(task.validation) :]
    good = [each for each in on_train if each.score.passed] or suggestions(task)
    rows, failures = measure(on_validation, task, good, "validation", losses)
    train_rows, train_failures = measure(on_train, task, good, "train")
    answers = [each.attribution for each in failures]
    need, rewards, level = need_of(answers), [row.value for row in rows], settings.keep.from_start
    bounds = tuple(_bound(repair, task, rows, answers) for repair in REPAIRS)
    detectable = smallest_detectable_gain(len(rows), level=level, step=_step(rows, answers))
    advice, reason = _advice(task, settings, rows, need, bounds, detectable)
    # Without references there is no training on them either: generated tokens are then the nearest measure.
    speed = Speed.measured(reply_s, scored_per_s or task.max_new_tokens / max(reply_s))
    learnt = [answered(task.prompt.dialogue(row), row.target or "") for row in task.train if row.reference]
    epoch_tokens = sum(map(policy.count_tokens, learnt))
    steps = step_costs(task, settings, speed, epoch_tokens=epoch_tokens, reply_tokens=reply_tokens)
    known = [loss for loss in losses if loss is not None]
    return Diagnosis(
        task=task.name,
        model=policy.name,
        train_rows=len(train),
        validation_rows=len(rows),
        reward=mean(rewards),
        interval=bootstrap_interval(rewards, bounds=REWARDS),
        all_checks=mean([float(row.passed) for row in rows]),
        checks=check_means([row.checks for row in rows]),
        train_reward=mean([row.value for row in train_rows]),
        loss_nats=mean(known) if known else None,
        need=need,
        train_need=need_of([each.attribution for each in train_failures]),
        examples=_examples(failures),
        bounds=bounds,
        level=level,
        smallest_detectable=detectable,
        costs=(*steps, whole_run(steps, settings)),
        reward_calls=task.reward.calls - calls,
        advice=advice,
        reason=reason,
    )


def _measured(
    task: Task, policy: Policy, train: Sequence[Example], cache: ReplyCache | None, on_progress: OnProgress
) -> tuple[list[Graded], list[float], float]:
    """Graded replies to validation and train, seconds per reply of each batch, and mean tokens per reply."""
    examples = [*task.validation, *train]
    moments = [(0, time.perf_counter())]

    def watched(done: int, total: int) -> None:
        moments.append((done, time.perf_counter()))
        on_progress(done, total)

    replies = ask(
        policy,
        cache,
        [task.prompt.dialogue(row) for row in examples],
        adapter=None,
        max_new_tokens=task.max_new_tokens,
        on_progress=watched,
    )
    tokens, count = replies.tokens, len(examples) - replies.cached
    if not count or len(moments) == 1:
        moments = [(0, time.perf_counter())]
        dialogues = [task.prompt.dialogue(row) for row in examples[:TIMED_ROWS]]
        tokens = policy.generate(dialogues, adapter=None, max_new_tokens=task.max_new_tokens).tokens
        count = len(dialogues)
        moments.append((count, time.perf_counter()))
    reply_s = [
        (end - start) / (after - before)
        for (before, start), (after, end) in itertools.pairwise(moments)
        if after > before
    ]
    return grade(task.reward, examples, replies.texts), reply_s, tokens / count


def _bound(repair: Repair, task: Task, rows: Sequence[Row], answers: Sequence[Attribution]) -> Bound:
    """The most that mending content, form, or both would bring."""
    by_id = {each.example_id: each for each in answers}
    examples = {row.id: row for row in task.validation}

    def mended(row: Row) -> float:
        found = by_id.get(row.id)
        if found is None:
            return row.value
        content, form = (1 - found.missing_reward * deficit for deficit in (found.form_deficit, found.content_deficit))
        if repair != "both":
            return max(row.value, content if repair == "content" else form)
        if found.repaired is None or task.reward.costly:
            return max(row.value, content, form)
        return max(row.value, content, form, task.reward(examples[row.id], found.repaired).value)

    gains = [mended(row) - row.value for row in rows]
    return Bound(repair, mean([row.value for row in rows]) + mean(gains), mean(gains), bootstrap_interval(gains))


def _step(rows: Sequence[Row], answers: Sequence[Attribution]) -> float:
    """The median gain of a row that is mended: by its best single repair, or else all of its missing reward."""
    values = {row.id: row.value for row in rows}
    moves = [each.repaired_reward - values[each.example_id] for each in answers]
    moves = sorted(move for move in moves if move > TIE) or sorted(each.missing_reward for each in answers)
    return moves[len(moves) // 2] if moves else 1.0


def _advice(
    task: Task, settings: RunSettings, rows: Sequence[Row], need: Need, bounds: Sequence[Bound], detectable: float
) -> tuple[Advice, str]:
    """What to do first, by the router; no change if nothing can be gained, or if validation cannot show the gain.

    A run may begin with the other kind: its first evaluation does not know layouts that the reward suggests, and they
    matter if no reply on train earns full reward.
    """
    reward, most = mean([row.value for row in rows]), max(bound.gain for bound in bounds)
    if reward >= settings.target or need.failures == 0:
        return "no change", f"Nothing to gain: reward {reward:.3f} on validation, {settings.target:.3f} wanted."
    if 0 < most < detectable:
        return "no change", (
            f"At most {most:+.3f} could be gained, and {len(rows)} validation rows show no gain below "
            f"{detectable:+.3f}: give more rows, or leave the model as it is."
        )
    router_input = RouterInput(
        task=task.hash,
        round=0,
        rounds_left=max(1, settings.max_rounds),
        failures=need.failures,
        validation_reward=reward,
        target=settings.target,
        need=need,
        progress={kind: progress_of(kind, []) for kind in KINDS},
        cost_tokens=update_tokens(task, settings),
        remade_waiting=0,
        seed=settings.seed,
        history=(),
    )
    choice = strategy_named("neurosymbolic", settings=settings.routing).choose(router_input)
    return "weights" if choice.action == "lora" else "prompt", choice.reason


def _examples(failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """A few failures of each verdict, those that miss the most reward first."""
    ranked = sorted(failures, key=lambda each: -each.attribution.missing_reward)
    of_each = ([each for each in ranked if each.attribution.verdict == repair][:EXAMPLES] for repair in REPAIRS)
    return tuple(itertools.chain.from_iterable(of_each))
