"""evaluate: measure the proposed candidate (the start, in round 0) on validation, and on a sample of train."""

from collections.abc import Sequence
from dataclasses import replace

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Measured
from nslora.nodes.shared.budget import Steps, deadline, measuring_flop
from nslora.nodes.shared.runtime import stream_progress, workspace_for
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.dataset.remade import read_rows
from nslora.tools.errors import BudgetError, RunError, TooLongError
from nslora.tools.evaluation.measure import measure, regression_rows
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.evaluation.records import (
    EvaluationCost,
    Failure,
    Passing,
    Row,
    evaluation_cost,
    layouts_hash,
    layouts_of,
    read_evaluation,
    read_passing,
    write_evaluation,
)
from nslora.tools.evaluation.rollouts import ask, grade, known_losses
from nslora.tools.files import sha256_of_json
from nslora.tools.inference.context_length import refuse_long_questions
from nslora.tools.inference.flops import answered
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import normalise
from nslora.tools.rewards.score import Graded, check_means
from nslora.tools.workspace.workspace import Workspace


def evaluate(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Write the rows and failures to a file, and their summary into the state.

    Raises RunError where what the graph was begun with is no first state, or is one on top of rounds.
    """
    refuse_other_beginning(state)
    workspace = workspace_for(runtime)
    proposal = state["proposal"]
    candidate = proposal["candidate"] if proposal else state["start"]
    if candidate is None:
        return {"measured": None}
    # The start is measured without a limit: a run that knows nothing of its model has nothing to end with.
    until = deadline(state, workspace, to_be_evaluated=False) if proposal else None
    kept = state["kept_measured"]
    steps = Steps(stream_progress("evaluate", "replies", until))
    try:
        measured = measure_candidate(workspace, candidate, state["round"], steps, kept=kept)
    except (BudgetError, TooLongError) as error:
        if proposal is None:
            raise
        done_flop = broken_off_flop(steps, candidate, state, workspace)
        return {
            "measured": None,
            "wall_s": workspace.clock.seconds,
            "proposal": {**proposal, "candidate": None, "error": str(error), "flop": proposal["flop"] + done_flop},
        }
    # Both sides under the same layouts, or one would gain potential by what the other was measured without.
    good = known_good(workspace, [*passing_of(workspace, kept), *passing_of(workspace, measured)])
    changes: Changes = {}
    if kept is not None:
        changes["kept_measured"] = attributed_anew(workspace, kept, good)
    measured = attributed_anew(workspace, measured, good)
    wall_s = workspace.clock.seconds
    return {**changes, "measured": {**measured, "wall_s": wall_s}, "wall_s": wall_s}


def broken_off_flop(steps: Steps, candidate: Candidate, state: AdaptationState, workspace: Workspace) -> float:
    """Most model FLOPs of an evaluation that ended before its end; replies that were known count as in a whole one."""
    if not steps.total:
        return 0.0
    share = 1.0 - (steps.total - steps.done) / len(workspace.measured_rows(state["round"]))
    return share * measuring_flop(workspace.prompts.get(candidate["prompt"]), state, workspace)


def refuse_other_beginning(state: AdaptationState) -> None:
    """Raise RunError where the graph was not begun, or gone on with, as a run is."""
    if "kept" not in state:
        raise RunError("This is no state of a run: begin with run.first_state(), or go on with None in its place.")
    if state["round"] < (done := len(state["rounds"])):
        raise RunError(
            f"A first state was given to a run with {done} rounds behind it, where None goes on: fork it at "
            f"round {done} to have them back, or begin another run."
        )


def measure_candidate(
    workspace: Workspace, candidate: Candidate, round_number: int, on_progress: OnProgress, *, kept: Measured | None
) -> Measured:
    """Evaluate one candidate; what is already measured is read back. kept: what it will be compared with."""
    sample = workspace.train_sample(round_number)
    regression_set = workspace.regression_set
    key = sha256_of_json(
        [
            candidate,
            workspace.task.hash,
            workspace.policy.fingerprint,
            [row.id for row in sample],
            workspace.task.max_new_tokens,
            *([row.question, row.reference] for row in regression_set),
        ]
    )[:16]
    path = workspace.evaluations / f"{key}.jsonl"
    if not path.exists():
        if kept is None:
            task = workspace.task
            refuse_long_questions(
                {"train": task.train, "validation": task.validation, "test": task.test, "anchor": regression_set},
                workspace.prompts.get(candidate["prompt"]),
                count=workspace.token_counts,
                context_tokens=workspace.policy.context_tokens,
                max_new_tokens=task.max_new_tokens,
            )
        validation, asked = workspace.task.validation, workspace.measured_rows(round_number)
        prompt = workspace.prompts.get(candidate["prompt"])
        replies = ask(
            workspace.policy,
            workspace.replies,
            prompt,
            [row.question for row in asked],
            adapter=candidate["adapter"],
            max_new_tokens=workspace.task.max_new_tokens,
            on_progress=on_progress,
        )
        losses, scored_tokens = reference_losses(workspace, candidate)
        every = grade(workspace.task.reward, asked, replies.texts)
        graded = every[: len(validation) + len(sample)]
        passing = [
            Passing(each.example.id, each.reply)
            for i, each in enumerate(graded)
            if i >= len(validation) and each.score.passed and i not in replies.truncated
        ]
        good = known_good(workspace, [*passing_of(workspace, kept), *passing])
        rows, failures = measure(
            graded[: len(validation)], workspace.task.reward, good, "validation", losses, workspace.task.train
        )
        more_rows, more_failures = measure(
            graded[len(validation) :], workspace.task.reward, good, "train", train=workspace.task.train
        )
        truncated = {graded[i].example.id for i in replies.truncated if len(validation) <= i < len(graded)}
        more_failures = [replace(each, truncated=each.id in truncated) for each in more_failures]
        more_rows += regression_rows(every[len(graded) :])
        cost = EvaluationCost(replies.tokens, replies.cached, replies.forward_tokens + scored_tokens)
        write_evaluation(
            path,
            rows + more_rows,
            failures + more_failures,
            payer=workspace.task_id,
            cost=cost,
            passing=passing,
            layouts=layouts_hash(good),
        )
    else:
        cost = evaluation_cost(path, workspace.task_id)
    return summary(key, read_evaluation(path)[0], cost, workspace.flop_rates.forward * cost.forward_tokens)


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


def attributed_anew(workspace: Workspace, measured: Measured, good: list[Graded]) -> Measured:
    """An evaluation with its failures attributed under the layouts of `good`; its rewards stay."""
    path = workspace.evaluations / f"{measured['key']}.jsonl"
    layouts = layouts_hash(good)
    if layouts_of(path) == layouts:
        return measured
    rows, failures = read_evaluation(path)
    anew: dict[str, Failure] = {}
    for split in ("validation", "train"):  # apart, as `measure` attributes them
        these = [each for each in failures if each.split == split]
        answers = classify_failures(
            [regraded(workspace, each) for each in these],
            workspace.task.reward,
            known_good=good,
            train=workspace.task.train,
        )
        anew |= {each.id: replace(each, attribution=answer) for each, answer in zip(these, answers, strict=True)}
    rows = [
        replace(row, repaired_reward=max(row.value, anew[row.id].attribution.repaired_reward))
        if row.split != "anchor" and row.id in anew
        else row
        for row in rows
    ]
    key = f"{measured['key'].split('-')[0]}-{layouts}"
    write_evaluation(
        workspace.evaluations / f"{key}.jsonl",
        rows,
        [anew[each.id] for each in failures],
        passing=read_passing(path),
        layouts=layouts,
    )
    return {
        **measured,
        "key": key,
        "potential": mean([row.repaired_reward for row in rows if row.split == "validation"]),
    }


def regraded(workspace: Workspace, failure: Failure) -> Graded:
    """A stored failure as the classifier takes it."""
    example = workspace.examples[failure.id]
    return Graded(example, failure.reply, workspace.task.reward(example, failure.reply))


def passing_of(workspace: Workspace, measured: Measured | None) -> list[Passing]:
    """The whole train replies of an evaluation that earned full reward."""
    return read_passing(workspace.evaluations / f"{measured['key']}.jsonl") if measured else []


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


def summary(key: str, rows: list[Row], cost: EvaluationCost, flop: float) -> Measured:
    """Means over the validation rows."""
    judged = [row for row in rows if row.split == "validation"]
    train = [row for row in rows if row.split == "train"]
    losses = [row.loss_nats for row in judged if row.loss_nats is not None]
    return Measured(
        key=key,
        reward=mean([row.value for row in judged]),
        potential=mean([row.repaired_reward for row in judged]),
        all_checks=mean([float(row.passed) for row in judged]),
        checks=check_means([row.checks for row in judged]),
        loss_nats=mean(losses) if losses else None,
        failures=sum(not row.passed for row in judged),
        train_reward=mean([row.value for row in train]),
        wall_s=0.0,
        generated_tokens=cost.tokens,
        cached_replies=cost.cached,
        flop=flop,
    )
