"""Evaluations from graded replies, the failures attributed to content and form by the reward itself."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from nslora.tools.classifier.attribution import Attribution, repairable_rewards
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.evaluation.records import Evaluation, EvaluationCost, Failure, Passing, Row, layouts_hash
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.prompt import Demonstration, normalise
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.tasks.task import Task


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
        Failure(each.example.id, split, each.example.question, each.reply, each.score.feedback, attribution)
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
    by_question = {normalise(row.question): row for row in task.train}
    by_id = {row.id: row for row in (*task.train, *task.validation)}
    pairs = [(by_question.get(normalise(each.question)), each.reply) for each in demonstrations]
    pairs += [(by_id.get(source), reply) for source, reply in replies]
    unlike = {(row.id, reply): row for row, reply in pairs if row is not None}
    graded = [Graded(row, reply, task.reward(row, reply)) for (_, reply), row in unlike.items()]
    return [each for each in graded if each.score.passed]
