"""What stands in the way, before anything is trained: the base model measured, its failures classified, and what each
kind of update could mend at most.

Upper bounds come from the repairs. With the content of every failure mended and its form left as it is, the reward of
a row is 1 - stake * form deficit; with the form mended and the content left, 1 - stake * content deficit.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nslora.tools.classifier.attribution import Attribution, Need, need_of
from nslora.tools.evaluation.acceptance import smallest_detectable_gain
from nslora.tools.evaluation.measure import measure
from nslora.tools.evaluation.paired_tests import REWARDS, TIE, bootstrap_interval, mean
from nslora.tools.evaluation.records import Failure, Row
from nslora.tools.evaluation.rollouts import ask, grade
from nslora.tools.inference.context_length import refuse_long_questions
from nslora.tools.inference.flops import token_counts
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policy import OnProgress, Policy, no_progress
from nslora.tools.rewards.score import Graded, check_means
from nslora.tools.router.inputs import RouterInput
from nslora.tools.router.monitoring_signal import progress_of
from nslora.tools.router.strategies import strategy_named
from nslora.tools.schema import KINDS, Example
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.cost_estimate import Cost, Speed, generated, trained, update_tokens, whole_run
from nslora.tools.workspace.reply_log import suggestions
from nslora.tools.workspace.settings import RunSettings

TRAIN_ROWS = 120  # of train that are looked at; more would not change what is said
TIMED_ROWS = 8  # replies generated for their speed alone, where all were known already
EXAMPLES = 2  # a verdict

Advice = Literal["no change", "weights", "prompt"]


@dataclass(frozen=True)
class Bound:
    """The reward on validation if one kind of repair succeeded on every failure, and the gain, paired by row (95 %)."""

    repair: Literal["content", "form", "both"]
    reward: float
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. interval: of the reward, 95 %. smallest_detectable: in mean reward, see `statistics`.

    advice is what should come first, and reason says why; train_rows: how many of train were looked at.
    """

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
    demand: Need
    train_demand: Need
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
    settings: RunSettings | None = None,
    cache: ReplyCache | None = None,
    on_progress: OnProgress = no_progress,
) -> Diagnosis:
    """Measure the untouched model on train and validation. Trains nothing and calls no editor; test is not looked at.

    Raises RewardError, naming the row, where the reward misbehaves, and ModelError where a question does not fit.
    """
    settings = settings or RunSettings()
    calls = task.reward.calls
    train = _sample(task.train, settings.seed)
    refuse_long_questions(
        {"train": train, "validation": task.validation},
        task.prompt,
        context_tokens=policy.context_tokens,
        max_new_tokens=task.max_new_tokens,
        count=lambda dialogues: token_counts(policy, cache, dialogues),
    )
    graded, speed, reply_tokens = _measured(task, policy, train, cache, on_progress)
    losses, speed = _losses(task, policy, speed)
    good = [each for each in graded[len(task.validation) :] if each.score.passed] or suggestions(task)
    rows, failures = measure(graded[: len(task.validation)], task.reward, good, "validation", losses, task.train)
    train_rows, train_failures = measure(graded[len(task.validation) :], task.reward, good, "train", train=task.train)
    answers = [each.attribution for each in failures]
    bounds = _bounds(task, rows, answers)
    detectable = smallest_detectable_gain(len(rows), level=settings.keep.from_start, step=_step(rows, answers))
    advice, reason = _advice(task, settings, rows, need_of(answers), bounds, detectable)
    known = [loss for loss in losses if loss is not None]
    return Diagnosis(
        task=task.name,
        model=policy.name,
        train_rows=len(train),
        validation_rows=len(rows),
        reward=mean([row.value for row in rows]),
        interval=bootstrap_interval([row.value for row in rows], bounds=REWARDS),
        all_checks=mean([float(row.passed) for row in rows]),
        checks=check_means([row.checks for row in rows]),
        train_reward=mean([row.value for row in train_rows]),
        loss_nats=mean(known) if known else None,
        demand=need_of(answers),
        train_demand=need_of([each.attribution for each in train_failures]),
        examples=_examples(failures),
        bounds=bounds,
        level=settings.keep.from_start,
        smallest_detectable=detectable,
        costs=_costs(task, policy, settings, speed, reply_tokens),
        reward_calls=task.reward.calls - calls,
        advice=advice,
        reason=reason,
    )


def _sample(train: Sequence[Example], seed: int) -> list[Example]:
    chosen = {row.id for row in random.Random(seed).sample(list(train), min(TRAIN_ROWS, len(train)))}
    return [row for row in train if row.id in chosen]


def _measured(
    task: Task, policy: Policy, train: Sequence[Example], cache: ReplyCache | None, on_progress: OnProgress
) -> tuple[list[Graded], Speed, float]:
    """Validation and train replies with their scores, the speed of this very evaluation, and tokens a reply."""
    examples = [*task.validation, *train]
    moments = [(0, time.perf_counter())]

    def watched(done: int, total: int) -> None:
        moments.append((done, time.perf_counter()))
        on_progress(done, total)

    replies = ask(
        policy,
        cache,
        task.prompt,
        [row.question for row in examples],
        adapter=None,
        max_new_tokens=task.max_new_tokens,
        on_progress=watched,
    )
    tokens, count = replies.tokens, len(examples) - replies.cached
    if not count or len(moments) == 1:
        moments = [(0, time.perf_counter())]
        dialogues = [task.prompt.messages(row.question) for row in examples[:TIMED_ROWS]]
        fresh = policy.generate(dialogues, adapter=None, max_new_tokens=task.max_new_tokens)
        moments.append((len(dialogues), time.perf_counter()))
        tokens, count = fresh.tokens, len(dialogues)
    reply_s = tuple(
        (end - start) / (after - before)
        for (before, start), (after, end) in itertools.pairwise(moments)
        if after > before
    )
    return grade(task.reward, examples, replies.texts), Speed(reply_s, 0.0), tokens / count


def _losses(task: Task, policy: Policy, speed: Speed) -> tuple[list[float | None], Speed]:
    """Loss of each validation reference, nats per token; and how many tokens a second go forward."""
    rows = [row for row in task.validation if row.reference]
    if not rows:
        # Without references there is no training on them either; generated tokens are the nearest measure.
        return [None] * len(task.validation), Speed(speed.reply_s, task.max_new_tokens / max(speed.reply_s))
    started = time.perf_counter()
    found = policy.reference_losses(
        [task.prompt.messages(row.question) for row in rows], [row.reference or "" for row in rows], adapter=None
    )
    tokens = sum(_row_tokens(task, policy, row) for row in rows)
    by_row = dict(zip([row.id for row in rows], found, strict=True))
    fresh = Speed(speed.reply_s, tokens / max(1e-9, time.perf_counter() - started))
    return [by_row.get(row.id) for row in task.validation], fresh


def _row_tokens(task: Task, policy: Policy, row: Example) -> int:
    """Tokens of a question under the prompt with its reference as the reply."""
    dialogue = task.prompt.messages(row.question)
    return policy.count_tokens([*dialogue, {"role": "assistant", "content": row.reference or ""}])


def _bounds(task: Task, rows: Sequence[Row], answers: Sequence[Attribution]) -> tuple[Bound, ...]:
    """What mending content, form, or both would bring, at most."""
    by_id = {each.example_id: each for each in answers}
    examples = {row.id: row for row in task.validation}

    def mended(row: Row, repair: str) -> float:
        found = by_id.get(row.id)
        if found is None:
            return row.value
        content, form = (1 - found.missing_reward * deficit for deficit in (found.form_deficit, found.content_deficit))
        if repair != "both":
            return max(row.value, content if repair == "content" else form)
        proof = 0.0
        if found.repaired is not None and not task.reward.costly:
            proof = task.reward(examples[row.id], found.repaired).value
        return max(row.value, content, form, proof)

    bounds: list[Bound] = []
    repairs: tuple[Literal["content", "form", "both"], ...] = ("content", "form", "both")
    for repair in repairs:
        gains = [mended(row, repair) - row.value for row in rows]
        reward = mean([row.value for row in rows]) + mean(gains)
        bounds.append(Bound(repair, reward, mean(gains), bootstrap_interval(gains)))
    return tuple(bounds)


def _step(rows: Sequence[Row], answers: Sequence[Attribution]) -> float:
    """By how much a row typically moves when it is mended: what one repair brings, or else what it misses; a median."""
    values = {row.id: row.value for row in rows}
    moves = sorted(
        each.repaired_reward - values[each.example_id]
        for each in answers
        if each.repaired_reward > values[each.example_id] + TIE
    )
    moves = moves or sorted(each.missing_reward for each in answers)
    return moves[len(moves) // 2] if moves else 1.0


def _advice(
    task: Task, settings: RunSettings, rows: Sequence[Row], need: Need, bounds: Sequence[Bound], detectable: float
) -> tuple[Advice, str]:
    """What should come first; no change where nothing could be gained, or none of it could be seen.

    Layouts that the reward suggests are known here, and not yet to a run's first evaluation: where no reply on train
    earns full reward, a run may take the other kind first.
    """
    reward, most = mean([row.value for row in rows]), max(bound.gain for bound in bounds)
    if reward >= settings.target or need.failures == 0:
        return "no change", f"Nothing to gain: reward {reward:.3f} on validation, {settings.target:.3f} wanted."
    if 0 < most < detectable:
        return "no change", (
            f"At most {most:+.3f} could be gained, and {len(rows)} validation rows show no gain below "
            f"{detectable:+.3f}: give more rows, or leave the model as it is."
        )
    tokens = update_tokens(len(task.train), settings.lora.epochs, task.max_new_tokens)
    router_input = RouterInput(
        task=task.hash,
        round=0,
        rounds_left=max(1, settings.max_rounds),
        failures=need.failures,
        validation_reward=reward,
        target=settings.target,
        need=need,
        progress={kind: progress_of(kind, []) for kind in KINDS},
        cost_tokens=tokens,
        remade_waiting=0,
        seed=settings.seed,
        history=(),
    )
    choice = strategy_named("neurosymbolic", settings=settings.routing).choose(router_input)
    return "weights" if choice.action == "lora" else "prompt", choice.reason


def _costs(task: Task, policy: Policy, settings: RunSettings, speed: Speed, reply_tokens: float) -> tuple[Cost, ...]:
    rows = [_row_tokens(task, policy, row) for row in task.train if row.reference]
    evaluated = len(task.validation) + min(settings.train_sample, len(task.train))
    job = trained("one LoRA update", rows, settings.lora.epochs, speed)
    edit = generated(
        "one edit of the prompt, with its remade data (the editor's own cost aside)",
        len(task.train),
        reply_tokens,
        speed,
    )
    evaluation = generated("one evaluation", evaluated, reply_tokens, speed)
    test = generated("the test split, base and result", 2 * len(task.test), reply_tokens, speed)
    return job, edit, evaluation, test, whole_run(job, edit, evaluation, test, settings.max_rounds)


def _examples(failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """A few failures of each verdict, those that lost the most first."""
    ranked = sorted(failures, key=lambda each: -each.attribution.missing_reward)
    return tuple(
        each
        for verdict in ("content", "form", "both")
        for each in [each for each in ranked if each.attribution.verdict == verdict][:EXAMPLES]
    )
