"""evaluate: measure the proposed candidate (the start, in round 0) on validation, and on a sample of train."""

from collections.abc import Sequence
from dataclasses import replace

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Measured
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.cost import CostLedger, Steps
from nslora.nodes.shared.replies import graded_replies
from nslora.nodes.shared.rounds import kept_evaluation
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.classifier.attribution import Attribution
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.dataset.remade import read_rows
from nslora.tools.errors import BudgetError, RunError, TooLongError
from nslora.tools.evaluation.measure import measure, regression_rows
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.evaluation.records import Evaluation, EvaluationCost, Passing, layouts_hash
from nslora.tools.evaluation.rollouts import grade, known_losses
from nslora.tools.files import sha256_of_json
from nslora.tools.inference.context_length import refuse_long_questions
from nslora.tools.inference.flops import answered
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import normalise
from nslora.tools.rewards.score import Graded, check_means
from nslora.tools.workspace.workspace import Workspace


def evaluate(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Measure the proposed candidate, or the start in round 0."""
    return step(state, workspace_for(runtime, "evaluate"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Write the rows and failures to a file, and their summary into the state.

    Raises RunError if the graph was begun with something else than a first state, or with one on top of rounds.
    """
    refuse_other_beginning(state)
    proposal, kept = state["proposal"], state["kept_measured"]
    candidate = proposal["candidate"] if proposal else state["start"]
    if candidate is None:
        return {"measured": None}
    ledger, budget, before = CostLedger(workspace), Budget(state, workspace), kept_evaluation(state, workspace)
    # The start is measured without a limit: a run that knows nothing of its model has nothing to end with.
    until = budget.deadline(to_be_evaluated=False) if proposal else None
    steps = Steps(progress(workspace, "replies", until))
    try:
        evaluation, cost = evaluated(workspace, candidate, state["round"], steps, before=before)
    except (BudgetError, TooLongError) as error:
        if proposal is None:
            raise
        flop = proposal["flop"] + broken_off_flop(steps, candidate, budget)
        failed = {**proposal, "candidate": None, "error": str(error), "flop": flop}
        return {"measured": None, "wall_s": ledger.wall_s, "proposal": failed}
    ledger.generate(cost.tokens, cost.forward_tokens)
    # The classifier knows the same layouts for both: more layouts alone would raise the repairable reward of one side.
    good = known_good(workspace, [*before.passing, *evaluation.passing])
    changes: Changes = {}
    if kept is not None:
        before = attributed_anew(workspace, before, good)
        changes["kept_measured"] = {**kept, "key": before.key, "potential": repairable_reward(before)}
    measured = summary(attributed_anew(workspace, evaluation, good), ledger, cost.cached)
    return {**changes, "measured": measured, "wall_s": measured["wall_s"]}


def broken_off_flop(steps: Steps, candidate: Candidate, budget: Budget) -> float:
    """Most model FLOPs of an evaluation that ended before its end; replies that were known count as in a whole one."""
    if not steps.total:
        return 0.0
    workspace = budget.workspace
    share = 1.0 - (steps.total - steps.done) / len(workspace.measured_rows(budget.state["round"]))
    return share * budget.measuring_flop(workspace.prompts.get(candidate["prompt"]))


def refuse_other_beginning(state: AdaptationState) -> None:
    """Raise RunError where the graph was not begun, or gone on with, as a run is."""
    if "kept" not in state:
        raise RunError("This is no state of a run: begin with run.first_state(), or go on with None in its place.")
    if state["round"] < (done := len(state["rounds"])):
        raise RunError(
            f"A first state was given to a run with {done} rounds behind it, where None goes on: fork it at "
            f"round {done} to have them back, or begin another run."
        )


def evaluated(
    workspace: Workspace, candidate: Candidate, round_number: int, on_progress: OnProgress, *, before: Evaluation
) -> tuple[Evaluation, EvaluationCost]:
    """The evaluation of a candidate, from its file if there is one, and what this call pays for it.

    before: the evaluation of the candidate in force; an empty one in round 0.
    """
    task, regression_set = workspace.task, workspace.regression_set
    sample = workspace.train_sample(round_number)
    key = sha256_of_json(
        [
            candidate,
            task.hash,
            workspace.policy.fingerprint,
            [row.id for row in sample],
            task.max_new_tokens,
            *([row.question, row.reference] for row in regression_set),
        ]
    )[:16]
    if key in workspace.evaluations:
        evaluation = workspace.evaluations.load(key)
        return evaluation, evaluation.cost_for(workspace.task_id)
    prompt = workspace.prompts.get(candidate["prompt"])
    if not before.key:
        refuse_long_questions(
            {"train": task.train, "validation": task.validation, "test": task.test, "anchor": regression_set},
            prompt,
            count=workspace.token_counts,
            context_tokens=workspace.policy.context_tokens,
            max_new_tokens=task.max_new_tokens,
        )
    asked = workspace.measured_rows(round_number)
    graded, replies = graded_replies(workspace, prompt, candidate["adapter"], asked, on_progress)
    losses, scored_tokens = reference_losses(workspace, candidate)
    first, last = len(task.validation), len(task.validation) + len(sample)
    passing = [
        Passing(graded[i].example.id, graded[i].reply)
        for i in range(first, last)
        if graded[i].score.passed and i not in replies.truncated
    ]
    good = known_good(workspace, [*before.passing, *passing])
    rows, failures = measure(graded[:first], task.reward, good, "validation", losses, task.train)
    train_rows, train_failures = measure(graded[first:last], task.reward, good, "train", train=task.train)
    truncated = {graded[i].example.id for i in replies.truncated if first <= i < last}
    evaluation = Evaluation(
        key,
        [*rows, *train_rows, *regression_rows(graded[last:])],
        [*failures, *(replace(each, truncated=each.id in truncated) for each in train_failures)],
        passing,
        layouts=layouts_hash(good),
        payer=workspace.task_id,
        cost=EvaluationCost(replies.tokens, replies.cached, replies.forward_tokens + scored_tokens),
    )
    return workspace.evaluations.write(evaluation), evaluation.cost


def reference_losses(workspace: Workspace, candidate: Candidate) -> tuple[list[float | None], int]:
    """Loss of each validation reference under the candidate, and the tokens that went through the model for it.

    In nats per token; None where a row has no reference.
    """
    prompt = workspace.prompts.get(candidate["prompt"])
    rows = [
        (i, row.reference or "", prompt.messages(row.question))
        for i, row in enumerate(workspace.task.validation)
        if row.reference
    ]
    references, dialogues = [reference for _, reference, _ in rows], [dialogue for _, _, dialogue in rows]
    losses = known_losses(workspace.policy, workspace.replies, dialogues, references, adapter=candidate["adapter"])
    tokens = workspace.token_counts([answered(*each) for each in zip(dialogues, references, strict=True)])
    by_row = dict(zip((i for i, _, _ in rows), losses, strict=True))
    return [by_row.get(i) for i in range(len(workspace.task.validation))], sum(tokens)


def attributed_anew(workspace: Workspace, evaluation: Evaluation, good: list[Graded]) -> Evaluation:
    """The evaluation with its failures attributed under the layouts of `good`; its rewards stay."""
    layouts = layouts_hash(good)
    if evaluation.layouts == layouts:
        return evaluation
    reward, anew = workspace.task.reward, dict[str, Attribution]()
    for split in ("validation", "train"):  # apart, as `measure` attributes them
        failures = evaluation.failed(split)
        graded = grade(reward, [workspace.examples[each.id] for each in failures], [each.reply for each in failures])
        answers = classify_failures(graded, reward, known_good=good, train=workspace.task.train)
        anew |= {each.id: answer for each, answer in zip(failures, answers, strict=True)}
    rows = [
        replace(row, repaired_reward=max(row.value, anew[row.id].repaired_reward))
        if row.split != "anchor" and row.id in anew
        else row
        for row in evaluation.rows
    ]
    return workspace.evaluations.write(
        Evaluation(
            f"{evaluation.key.split('-')[0]}-{layouts}",
            rows,
            [replace(each, attribution=anew[each.id]) for each in evaluation.failures],
            evaluation.passing,
            layouts=layouts,
        )
    )


def known_good(workspace: Workspace, passing: Sequence[Passing]) -> list[Graded]:
    """Replies to train questions that earn full reward, from which the classifier learns layouts.

    They come from the demonstrations of this run's prompts, from its remade data, and from evaluations (passing). A
    reply that stands in several of these tells its layout once.
    """
    by_question = {normalise(row.question): row for row in workspace.task.train}
    pairs = [
        (by_question.get(normalise(each.question)), each.reply)
        for prompt in workspace.prompts.all()
        for each in prompt.demonstrations
    ]
    pairs += [
        (workspace.examples.get(row.source), row.reply)
        for path in sorted(workspace.remade.glob("*.jsonl"))
        for row in read_rows(path)
    ]
    pairs += [(workspace.examples.get(each.id), each.reply) for each in passing]
    unlike = {(row.id, reply): row for row, reply in pairs if row is not None}
    graded = [Graded(row, reply, workspace.task.reward(row, reply)) for (_, reply), row in unlike.items()]
    return [each for each in graded if each.score.passed]


def repairable_reward(evaluation: Evaluation) -> float:
    """Mean reward on validation after the best single repair of each failure."""
    return mean([row.repaired_reward for row in evaluation.of("validation").values()])


def summary(evaluation: Evaluation, ledger: CostLedger, cached_replies: int) -> Measured:
    """Means over the validation rows, and over the train rows of the sample."""
    rows = list(evaluation.of("validation").values())
    losses = [row.loss_nats for row in rows if row.loss_nats is not None]
    return Measured(
        key=evaluation.key,
        reward=mean([row.value for row in rows]),
        potential=repairable_reward(evaluation),
        all_checks=mean([float(row.passed) for row in rows]),
        checks=check_means([row.checks for row in rows]),
        loss_nats=mean(losses) if losses else None,
        failures=sum(not row.passed for row in rows),
        train_reward=mean([row.value for row in evaluation.of("train").values()]),
        wall_s=ledger.wall_s,
        generated_tokens=ledger.generated_tokens,
        cached_replies=cached_replies,
        flop=ledger.flop,
    )
