"""Replies of the policy, graded by the reward, and the evaluations that they make.

The failures of an evaluation are attributed to content and form by the reward itself.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nslora.tools.classifier.attribution import Attribution, repairable_rewards
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.errors import UnfinishedError
from nslora.tools.evaluation.records import Evaluation, EvaluationCost, Failure, Passing, Row, layouts_hash
from nslora.tools.files import sha256_of_json
from nslora.tools.inference.reply_cache import ReplyCache, reply_key, token_counts
from nslora.tools.policy import OnProgress, Policy, no_progress
from nslora.tools.prompt import Demonstration, Prompt, normalise
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Dialogue, Example, answered
from nslora.tools.tasks.task import Task
from nslora.tools.thinking import split_thinking

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
    keys = [reply_key(policy.fingerprint, adapter, json.dumps(dialogue), max_new_tokens) for dialogue in dialogues]
    marks = {
        key: reply_key(policy.fingerprint, adapter, json.dumps(["cut", dialogue]), max_new_tokens)
        for key, dialogue in zip(keys, dialogues, strict=True)
    }
    by_key = dict(zip(keys, dialogues, strict=True))  # a question that comes twice is asked once
    replies = cache.find(list(by_key)) if cache else {}
    missing = [key for key in by_key if key not in replies]
    marked = set(cache.find(list(marks.values()))) if cache else set()
    request = sha256_of_json(keys)
    tokens, spent_replies = cache.paid(request) if cache else (0, 0)
    for start in range(0, len(missing), STORED_REPLIES):
        lot = missing[start : start + STORED_REPLIES]
        stopped: UnfinishedError | None = None
        try:
            generated = policy.generate(
                [by_key[key] for key in lot],
                adapter=adapter,
                max_new_tokens=max_new_tokens,
                on_progress=_within(on_progress, start, len(lot), len(missing)),
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
    texts = tuple(replies[key] for key in keys)
    counts = token_counts(
        policy, cache, [answered(dialogue, text) for dialogue, text in zip(dialogues, texts, strict=True)]
    )
    return Replies(
        texts,
        tokens,
        len(by_key) - len(missing) - spent_replies,
        sum(counts),
        frozenset(i for i, key in enumerate(keys) if marks[key] in marked),
    )


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
    return [Graded(*each) for each in zip(examples, answers, scores, thinking, strict=True)]


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
    """
    rows, failures = measure(graded["validation"], task.reward, known_good, "validation", losses, task.train)
    train_rows, train_failures = measure(graded["train"], task.reward, known_good, "train", train=task.train)
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
        Failure(
            each.example.id,
            split,
            each.example.asked,
            each.reply,
            each.score.feedback,
            attribution,
            thinking=each.thinking,
        )
        for each, attribution in zip(failing, attributions, strict=True)
    ]
    return rows, failures


def attributed_anew(
    evaluation: Evaluation, task: Task, examples: Mapping[str, Example], known_good: Sequence[Graded]
) -> Evaluation:
    """The evaluation with its failures attributed under the layouts of `known_good`; its rewards stay.

    examples: train and validation rows by id.
    """
    layouts, anew = layouts_hash(known_good), dict[str, Attribution]()
    if evaluation.layouts == layouts:
        return evaluation
    for split in ("validation", "train"):  # apart, as `measure` attributes them
        failures = evaluation.failed(split)
        graded = grade(task.reward, [examples[each.id] for each in failures], [each.reply for each in failures])
        answers = classify_failures(graded, task.reward, known_good=known_good, train=task.train)
        anew |= {each.id: answer for each, answer in zip(failures, answers, strict=True)}
    rows = [
        replace(row, repaired_reward=max(row.value, anew[row.id].repaired_reward))
        if row.split != "anchor" and row.id in anew
        else row
        for row in evaluation.rows
    ]
    failures = [replace(each, attribution=anew[each.id]) for each in evaluation.failures]
    key = f"{evaluation.key.split('-')[0]}-{layouts}"
    return Evaluation(key, rows, failures, evaluation.passing, layouts)


def known_good(task: Task, demonstrations: Iterable[Demonstration], replies: Iterable[tuple[str, str]]) -> list[Graded]:
    """Replies to rows of the task that earn full reward, from which the classifier learns layouts, each once.

    Args:
        task: Of the run.
        demonstrations: Of its prompts; those that ask no train question are left out.
        replies: Ids of train or validation rows, each with a reply.
    """
    by_question = {normalise(row.asked): row for row in task.train}
    by_id = {row.id: row for row in (*task.train, *task.validation)}
    pairs = [(by_question.get(normalise(each.question)), each.reply) for each in demonstrations]
    pairs += [(by_id.get(source), reply) for source, reply in replies]
    unlike = {(row.id, reply): row for row, reply in pairs if row is not None}
    graded = [Graded(row, reply, task.reward(row, reply)) for (_, reply), row in unlike.items()]
    return [each for each in graded if each.score.passed]
