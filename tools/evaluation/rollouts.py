"""Replies of the policy, graded by the reward, and the evaluations that they make.

The failures of an evaluation are attributed to content and form by the reward itself.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nslora.tools.classifier.attribution import repairable_rewards
from nslora.tools.classifier.calls import Judged, judge_calls
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.errors import UnfinishedError
from nslora.tools.evaluation.records import Evaluation, EvaluationCost, Failure, Passing, Row, layouts_hash
from nslora.tools.files import sha256_of_json
from nslora.tools.inference.reply_cache import ReplyCache, reply_key, token_counts
from nslora.tools.policy import OnProgress, Policy, Sampling, no_progress
from nslora.tools.prompt import Demonstration, Prompt, normalise
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Dialogue, Example, answered
from nslora.tools.tasks.task import Task
from nslora.tools.thinking import split_thinking
from nslora.tools.trajectory import Trajectory

NO_ANSWER = "The reply ends inside its thinking, before any answer."
STORED_REPLIES = 256  # replies are stored in lots of so many: what a kill or Ctrl-C loses of a long evaluation


@dataclass(frozen=True)
class Replies:
    """Replies to some questions: how many tokens were generated for them, and how many replies came from the cache.

    forward_tokens: prompts and replies together, cached or not. truncated: indices of replies that the length limit
    ended.
    """

    texts: tuple[str, ...]
    tokens: int
    cached: int
    forward_tokens: int = 0
    truncated: frozenset[int] = frozenset()


def ask(
    policy: Policy,
    cache: ReplyCache | None,
    dialogues: Sequence[Dialogue],
    *,
    adapter: str | None,
    max_new_tokens: int,
    on_progress: OnProgress = no_progress,
) -> Replies:
    """The policy's greedy replies to `dialogues`, from the cache if it knows them."""
    request = sha256_of_json(_keys(policy, dialogues, adapter, max_new_tokens, None))
    tokens, spent_replies = cache.paid(request) if cache else (0, 0)
    found = known_or_new(
        policy,
        cache,
        dialogues,
        adapter=adapter,
        max_new_tokens=max_new_tokens,
        request=request,
        on_progress=on_progress,
    )
    counts = token_counts(
        policy, cache, [answered(dialogue, text) for dialogue, text in zip(dialogues, found.texts, strict=True)]
    )
    return replace(found, tokens=tokens + found.tokens, cached=found.cached - spent_replies, forward_tokens=sum(counts))


def known_or_new(
    policy: Policy,
    cache: ReplyCache | None,
    dialogues: Sequence[Dialogue],
    *,
    adapter: str | None,
    max_new_tokens: int,
    request: str,
    sampling: Sampling | None = None,
    on_progress: OnProgress = no_progress,
) -> Replies:
    """Replies from the cache or from the policy; tokens and cached are of this call alone, forward_tokens is 0.

    request: names what the payer of new replies has asked for. sampling: draws the replies; None for greedy ones.
    """
    keys = _keys(policy, dialogues, adapter, max_new_tokens, sampling)
    marks = dict(
        zip(keys, _keys(policy, [["cut", each] for each in dialogues], adapter, max_new_tokens, sampling), strict=True)
    )
    by_key = dict(zip(keys, dialogues, strict=True))  # a question that comes twice is asked once
    replies = cache.find(list(by_key)) if cache else {}
    missing = [key for key in by_key if key not in replies]
    marked = set(cache.find(list(marks.values()))) if cache else set()
    tokens, drawn = 0, {} if sampling is None else {"sampling": sampling}
    for start in range(0, len(missing), STORED_REPLIES):
        lot = missing[start : start + STORED_REPLIES]
        stopped: UnfinishedError | None = None
        try:
            generated = policy.generate(
                [by_key[key] for key in lot],
                adapter=adapter,
                max_new_tokens=max_new_tokens,
                on_progress=_within(on_progress, start, len(lot), len(missing)),
                **drawn,
            )
        except UnfinishedError as error:
            stopped, generated, lot = error, error.generated, [lot[i] for i in error.indices]
        new = dict(zip(lot, generated.replies, strict=True))
        tokens += generated.tokens
        truncated = {marks[lot[i]]: "" for i in sorted(generated.truncated)}
        marked |= truncated.keys()
        if cache:
            cache.add(truncated)  # before the replies, or a kill between the two would lose the marks
            cache.add(new, request, generated.tokens)
            new |= cache.find(lot)  # where another process was faster, its replies are the ones on record
        if stopped is not None:
            raise stopped
        replies |= new
        on_progress(start + len(lot), len(missing))
    return Replies(
        tuple(replies[key] for key in keys),
        tokens,
        len(by_key) - len(missing),
        truncated=frozenset(i for i, key in enumerate(keys) if marks[key] in marked),
    )


def _keys(
    policy: Policy, asked: Sequence[Any], adapter: str | None, max_new_tokens: int, sampling: Sampling | None
) -> list[str]:
    """The keys of replies in the cache."""
    drawn = [] if sampling is None else ["sample", sampling.temperature, sampling.number]
    requests = [json.dumps([*drawn, each] if drawn else each) for each in asked]
    return [reply_key(policy.fingerprint, adapter, request, max_new_tokens) for request in requests]


def _within(on_progress: OnProgress, start: int, lot: int, total: int) -> OnProgress:
    """Progress inside a lot of replies. Its end is left to whoever stores them, since a run may stop there."""

    def inside(done: int, _: int) -> None:
        if done < lot:
            on_progress(start + done, total)

    return inside


def reference_losses(
    policy: Policy, cache: ReplyCache | None, prompt: Prompt, rows: Sequence[Example], *, adapter: str | None
) -> tuple[list[float | None], int]:
    """The loss of each row's reference under a prompt, and the tokens that went through the model for it.

    In nats per token, from the cache if it knows all of them; None if a row has no reference.
    """
    scored = [row for row in rows if row.reference]
    dialogues, references = [prompt.dialogue(row) for row in scored], [row.target or "" for row in scored]
    keys = [
        reply_key(policy.fingerprint, adapter, json.dumps(["loss", dialogue, reference]), 0)
        for dialogue, reference in zip(dialogues, references, strict=True)
    ]
    known = cache.find(keys) if cache else {}
    lacking = [i for i, key in enumerate(keys) if key not in known]
    if lacking:
        if not getattr(policy, "scores_alone", False):  # a batch of other rows would be padded to another width
            lacking = list(range(len(keys)))
        stopped: UnfinishedError | None = None
        try:
            found = policy.reference_losses(
                [dialogues[i] for i in lacking], [references[i] for i in lacking], adapter=adapter
            )
        except UnfinishedError as error:
            stopped, found, lacking = error, error.generated, [lacking[i] for i in error.indices]
        new = {keys[i]: repr(loss) for i, loss in zip(lacking, found, strict=True)}
        if cache:
            cache.add(new)
        if stopped is not None:
            raise stopped
        known |= new
    losses = [float(known[key]) for key in keys]
    counts = token_counts(policy, cache, [answered(*each) for each in zip(dialogues, references, strict=True)])
    by_id = {row.id: loss for row, loss in zip(scored, losses, strict=True)}
    return [by_id.get(row.id) for row in rows], sum(counts)


def grade(reward: Reward, examples: Sequence[Example], replies: Sequence[str]) -> list[Graded]:
    """Each reply with its score, judged by its answer: thinking is set aside, and alone it counts as an empty reply.

    Raises:
        RewardError: If the reward returns no usable score; the message names the row.
    """
    thinking, answers = zip(*map(split_thinking, replies), strict=True) if replies else ((), ())
    scores = [
        replace(score, feedback=f"{NO_ANSWER} {score.feedback}".rstrip()) if before and not answer else score
        for before, answer, score in zip(thinking, answers, reward.score_all(examples, answers), strict=True)
    ]
    graded = [Graded(*each) for each in zip(examples, answers, scores, thinking, strict=True)]
    return [_failed(each) if each.example.trajectory and each.example.trajectory.failure else each for each in graded]


def _failed(graded: Graded) -> Graded:
    """What a failed trajectory of an agent earns: nothing, with the reason as feedback."""
    score, failure = graded.score, graded.example.trajectory.failure
    feedback = f"The agent {failure}. {score.feedback}".rstrip()
    return replace(graded, score=replace(score, value=0.0, checks=dict.fromkeys(score.checks, 0.0), feedback=feedback))


def evaluation_of(
    key: str,
    graded: Mapping[str, Sequence[Graded]],
    task: Task,
    known_good: Sequence[Graded],
    *,
    losses: Sequence[float | None],
    passing: Sequence[Passing],
    truncated: Collection[str],
    payer: str,
    cost: EvaluationCost,
    mended: Mapping[str, Trajectory] | None = None,
) -> Evaluation:
    """The evaluation of one candidate.

    Args:
        key: Names the evaluation.
        graded: Replies by split: validation, train, and anchor for the regression set.
        task: Of the run.
        known_good: Replies that earn full reward, from which the classifier learns layouts.
        losses: Of the validation references, nats per token; None if a row has no reference.
        passing: Train replies that earn full reward.
        truncated: Ids of the train rows whose reply the length limit ended.
        payer: Task of the graph that paid for the replies.
        cost: Of the replies and losses.
        mended: Failing trajectories with one call mended, by id of the row.
    """
    rows, failures = measure(graded["validation"], task, known_good, "validation", losses, mended)
    train_rows, train_failures = measure(graded["train"], task, known_good, "train", mended=mended)
    # Nothing is to be learnt from the regression set: its rows have rewards alone.
    regression_rows = [
        Row(each.example.id, "anchor", each.score.value, dict(each.score.checks), each.score.value, None)
        for each in graded["anchor"]
    ]
    return Evaluation(
        key,
        [*rows, *train_rows, *regression_rows],
        [*failures, *(replace(each, truncated=each.id in truncated) for each in train_failures)],
        passing,
        layouts_hash(known_good),
        payer,
        cost,
    )


def measure(
    graded: Sequence[Graded],
    task: Task,
    known_good: Sequence[Graded],
    split: str,
    losses: Sequence[float | None] | None = None,
    mended: Mapping[str, Trajectory] | None = None,
) -> tuple[list[Row], list[Failure]]:
    """Rows and failures of one split, the failures attributed to content and form by the reward itself.

    mended: failing trajectories of an agent with one call mended, by id of the row.
    """
    failing = [each for each in graded if not each.score.passed]
    judged = needs_of(failing, task, known_good, mended or {})
    attributions = [each.attribution for each in judged]
    repaired_rewards = repairable_rewards(graded, attributions)
    rows = [
        Row(each.example.id, split, each.score.value, dict(each.score.checks), repaired_reward, loss)
        for each, repaired_reward, loss in zip(graded, repaired_rewards, losses or [None] * len(graded), strict=True)
    ]
    failures = [
        Failure(
            each.example.id,
            split,
            each.example.asked,
            each.reply,
            each.score.feedback,
            attribution,
            thinking=each.thinking,
            trajectory=each.example.trajectory.to_json() if each.example.trajectory else "",
            mended=mended[each.example.id].to_json() if mended and each.example.id in mended else "",
            fault=found.fault,
        )
        for each, attribution, found in zip(failing, attributions, judged, strict=True)
    ]
    return rows, failures


def needs_of(
    failing: Sequence[Graded], task: Task, known_good: Sequence[Graded], mended: Mapping[str, Trajectory]
) -> list[Judged]:
    """What each failure needs, and of an agent the call that is to blame.

    Rows of train fit reward heads, where the reward is costly or wavers.
    """
    found = classify_failures(failing, task.reward, known_good=known_good, train=task.train)
    if task.agent is None:
        return [Judged(each, "") for each in found]
    return judge_calls(failing, found, task.reward, mended=mended, passing=known_good)


def attributed_anew(
    evaluation: Evaluation, task: Task, examples: Mapping[str, Example], known_good: Sequence[Graded]
) -> Evaluation:
    """The evaluation with its failures attributed under the layouts of `known_good`; its rewards stay.

    examples: train and validation rows by id.
    """
    layouts, anew = layouts_hash(known_good), dict[str, Judged]()
    if evaluation.layouts == layouts:
        return evaluation
    for split in ("validation", "train"):  # apart, as `measure` attributes them
        failures = evaluation.failed(split)
        asked = [with_trajectory(examples[each.id], each.trajectory) for each in failures]
        graded = grade(task.reward, asked, [each.reply for each in failures])
        mended = {each.id: Trajectory.from_json(each.mended) for each in failures if each.mended}
        answers = needs_of(graded, task, known_good, mended)
        anew |= {each.id: answer for each, answer in zip(failures, answers, strict=True)}
    rows = [
        replace(row, repaired_reward=max(row.value, anew[row.id].attribution.repaired_reward))
        if row.split != "anchor" and row.id in anew
        else row
        for row in evaluation.rows
    ]
    failures = [
        replace(each, attribution=anew[each.id].attribution, fault=anew[each.id].fault) for each in evaluation.failures
    ]
    key = f"{evaluation.key.split('-')[0]}-{layouts}"
    return Evaluation(key, rows, failures, evaluation.passing, layouts)


def with_trajectory(example: Example, record: str) -> Example:
    """The row with what an agent did for it; record: of the trajectory, "" if there is none."""
    return replace(example, trajectory=Trajectory.from_json(record)) if record else example


def known_good(
    task: Task, demonstrations: Iterable[Demonstration], replies: Iterable[tuple[str, str, str]]
) -> list[Graded]:
    """Replies to rows of the task that earn full reward, from which the classifier learns layouts, each once.

    Args:
        task: Of the run.
        demonstrations: Of its prompts; those that ask no train question are left out.
        replies: Ids of train or validation rows, each with a reply, and the record of its trajectory or "".
    """
    by_question = {normalise(row.asked): row for row in task.train}
    by_id = {row.id: row for row in (*task.train, *task.validation)}
    pairs = [(by_question.get(normalise(each.question)), each.reply) for each in demonstrations]
    pairs += [(with_trajectory(by_id[source], record), reply) for source, reply, record in replies if source in by_id]
    unlike = {(row.id, reply): row for row, reply in pairs if row is not None}
    graded = [Graded(row, reply, task.reward(row, reply)) for (_, reply), row in unlike.items()]
    return [each for each in graded if each.score.passed]
