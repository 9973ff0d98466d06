"""evaluate: measure the proposed candidate (the start, in round 0) on validation, and on a sample of train."""

from dataclasses import replace

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Measured
from nslora.nodes.spending import deadline
from nslora.nodes.workplace import lab_for, progress
from nslora.tools.classifier import classify
from nslora.tools.compute import answered
from nslora.tools.errors import BudgetError, TooLongError
from nslora.tools.evaluation import (
    EvaluationCost,
    Failure,
    Row,
    anchor_rows,
    ask,
    evaluation_cost,
    grade,
    known_losses,
    measure,
    read_evaluation,
    write_evaluation,
)
from nslora.tools.files import sha256_of_json
from nslora.tools.lab import Lab
from nslora.tools.policy import Advance
from nslora.tools.prompt import normalise
from nslora.tools.remake import read_rows
from nslora.tools.rewards import Graded, check_means


def evaluate(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Write the rows and failures to a file, and their summary into the state."""
    lab = lab_for(runtime)
    proposal = state["proposal"]
    candidate = proposal["candidate"] if proposal else state["start"]
    if candidate is None:
        return {"measured": None}
    # The start is measured without a limit: a run that knows nothing of its model has nothing to end with.
    until = deadline(state, lab, to_be_evaluated=False) if proposal else None
    try:
        measured = measure_candidate(lab, candidate, state["round"], progress("evaluate", "replies", until))
    except (BudgetError, TooLongError) as error:
        if proposal is None:
            raise
        return {"measured": None, "proposal": {**proposal, "candidate": None, "error": str(error)},
                "wall_s": lab.clock.seconds}
    changes: Changes = {}
    if state["kept_measured"] is not None:
        changes["kept_measured"] = attributed_anew(lab, state["kept_measured"])
    wall_s = lab.clock.seconds
    return {**changes, "measured": {**measured, "wall_s": wall_s}, "wall_s": wall_s}


def measure_candidate(lab: Lab, candidate: Candidate, round_number: int, advance: Advance) -> Measured:
    """Evaluate one candidate; what is already measured is read back."""
    sample = lab.train_sample(round_number)
    anchor = lab.anchor
    key = sha256_of_json([candidate, lab.task.hash, lab.policy.fingerprint, [row.id for row in sample],
                          lab.task.max_new_tokens, *([row.question, row.reference] for row in anchor)])[:16]
    path = lab.evaluations / f"{key}.jsonl"
    if not path.exists():
        validation = lab.task.validation
        prompt = lab.prompts.get(candidate["prompt"])
        replies = ask(lab.policy, lab.replies, prompt,
                      [row.question for row in (*validation, *sample, *anchor)], adapter=candidate["adapter"],
                      max_new_tokens=lab.task.max_new_tokens, advance=advance)
        losses, scored_tokens = reference_losses(lab, candidate)
        every = grade(lab.task.reward, (*validation, *sample, *anchor), replies.texts)
        graded = every[:len(validation) + len(sample)]
        good = known_good(lab) + [each for each in graded[len(validation):] if each.score.passed]
        rows, failures = measure(graded[:len(validation)], lab.task.reward, good, "validation",
                                 losses, lab.task.train)
        more_rows, more_failures = measure(graded[len(validation):], lab.task.reward, good, "train",
                                           train=lab.task.train)
        more_rows += anchor_rows(every[len(graded):])
        cost = EvaluationCost(replies.tokens, replies.cached, replies.forward_tokens + scored_tokens)
        write_evaluation(path, rows + more_rows, failures + more_failures, payer=lab.task_id, cost=cost)
    else:
        cost = evaluation_cost(path, lab.task_id)
    return summary(key, read_evaluation(path)[0], cost, lab.flop_rates.forward * cost.forward_tokens)


def reference_losses(lab: Lab, candidate: Candidate) -> tuple[list[float | None], int]:
    """Loss of each validation reference under the candidate, and the tokens that went through the model for it.

    In nats per token; None where a row has no reference.
    """
    prompt = lab.prompts.get(candidate["prompt"])
    rows = [(i, row.reference or "", prompt.messages(row.question))
            for i, row in enumerate(lab.task.validation) if row.reference]
    references, dialogues = [reference for _, reference, _ in rows], [dialogue for _, _, dialogue in rows]
    losses = known_losses(lab.policy, lab.replies, dialogues, references, adapter=candidate["adapter"])
    tokens = lab.token_counts([answered(*each) for each in zip(dialogues, references, strict=True)])
    by_row = dict(zip((i for i, _, _ in rows), losses, strict=True))
    return [by_row.get(i) for i in range(len(lab.task.validation))], sum(tokens)


def attributed_anew(lab: Lab, kept: Measured) -> Measured:
    """The kept candidate's failures under the layouts that are known by now; its rewards stay.

    The first replies that earn full reward come with the first edit. Without this, the potential of a new candidate
    would be measured with layouts that the kept one was measured without.
    """
    rows, failures = read_evaluation(lab.evaluations / f"{kept['key']}.jsonl")
    good = known_good(lab)
    key = sha256_of_json([kept["key"].split("-")[0], sorted({(each.example.id, each.reply) for each in good})])[:8]
    key = f"{kept['key'].split('-')[0]}-{key}"
    if key != kept["key"]:
        graded = [regraded(lab, each) for each in failures]
        anew = classify(graded, lab.task.reward, known_good=good, train=lab.task.train)
        singles = {each.example_id: each.single for each in anew}
        rows = [replace(row, single=max(row.value, singles.get(row.id, 0.0))) for row in rows]
        failures = [replace(each, attribution=fresh) for each, fresh in zip(failures, anew, strict=True)]
        write_evaluation(lab.evaluations / f"{key}.jsonl", rows, failures)
    judged = [row.single for row in rows if row.split == "validation"]
    return {**kept, "key": key, "potential": mean(judged)}


def regraded(lab: Lab, failure: Failure) -> Graded:
    """A stored failure as the classifier takes it."""
    example = lab.examples[failure.id]
    return Graded(example, failure.reply, lab.task.reward(example, failure.reply))


def known_good(lab: Lab) -> list[Graded]:
    """Replies to train questions that earn full reward, from which the classifier learns layouts.

    They come from the demonstrations of this run's prompts and from its remade data. A reply that stands under several
    prompts tells its layout once.
    """
    by_question = {normalise(row.question): row for row in lab.task.train}
    pairs = [(by_question.get(normalise(each.question)), each.reply)
             for prompt in lab.prompts.all() for each in prompt.demonstrations]
    pairs += [(lab.examples.get(row.source), row.reply)
              for path in sorted(lab.remade.glob("*.jsonl")) for row in read_rows(path)]
    different = {(row.id, reply): row for row, reply in pairs if row is not None}
    graded = [Graded(row, reply, lab.task.reward(row, reply)) for (_, reply), row in different.items()]
    return [each for each in graded if each.score.passed]


def summary(key: str, rows: list[Row], cost: EvaluationCost, flop: float) -> Measured:
    """Means over the validation rows."""
    judged = [row for row in rows if row.split == "validation"]
    train = [row for row in rows if row.split == "train"]
    losses = [row.loss_nats for row in judged if row.loss_nats is not None]
    return Measured(
        key=key, reward=mean([row.value for row in judged]), potential=mean([row.single for row in judged]),
        all_checks=mean([float(row.passed) for row in judged]),
        checks=check_means([row.checks for row in judged]),
        loss_nats=mean(losses) if losses else None, failures=sum(not row.passed for row in judged),
        train_reward=mean([row.value for row in train]), wall_s=0.0, generated_tokens=cost.tokens,
        cached_replies=cost.cached, flop=flop)


def mean(values: list[float]) -> float:
    return float(sum(values) / len(values)) if values else 0.0
