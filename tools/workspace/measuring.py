"""The evaluation of a candidate: asked, graded, and attributed by what the run knows of right layouts."""

from collections.abc import Mapping, Sequence
from typing import Any

from nslora.tools.dataset.remade import read_rows
from nslora.tools.evaluation.records import Evaluation, EvaluationCost, Passing
from nslora.tools.evaluation.rollouts import evaluation_of, known_good, reference_losses
from nslora.tools.files import sha256_of_json
from nslora.tools.policy import OnProgress
from nslora.tools.rewards.score import Graded
from nslora.tools.workspace.prompt_check import refuse_long_rows
from nslora.tools.workspace.workspace import Workspace


def evaluated(
    workspace: Workspace,
    candidate: Mapping[str, Any],
    round_number: int,
    on_progress: OnProgress,
    *,
    before: Evaluation,
) -> tuple[Evaluation, EvaluationCost]:
    """The evaluation of a candidate, from its file if there is one, and what this call pays for it.

    before: the evaluation of the candidate in force; an empty one in round 0.
    """
    task, sample = workspace.task, workspace.train_sample(round_number)
    key = sha256_of_json(
        [
            candidate,
            task.hash,
            workspace.policy.fingerprint,
            [row.id for row in sample],
            task.max_new_tokens,
            *([row.asked, row.reference] for row in workspace.regression_set),
        ]
    )[:16]
    if key in workspace.evaluations:
        evaluation = workspace.evaluations.load(key)
        return evaluation, evaluation.cost_for(workspace.task_id)
    prompt = workspace.prompts.get(candidate["prompt"])
    if not before.key:
        refuse_long_rows(workspace, prompt)
    asked = workspace.measured_rows(round_number)
    graded, replies = workspace.graded_replies(prompt, candidate["adapter"], asked, on_progress)
    losses, scored_tokens = reference_losses(
        workspace.policy, workspace.replies, prompt, task.validation, adapter=candidate["adapter"]
    )
    first, last = len(task.validation), len(task.validation) + len(sample)
    passing = [
        Passing(graded[i].example.id, graded[i].reply, graded[i].thinking)
        for i in range(first, last)
        if graded[i].score.passed and i not in replies.truncated
    ]
    evaluation = evaluation_of(
        key,
        {"validation": graded[:first], "train": graded[first:last], "anchor": graded[last:]},
        task,
        layouts_known(workspace, [*before.passing, *passing]),
        losses=losses,
        passing=passing,
        truncated={graded[i].example.id for i in replies.truncated if first <= i < last},
        payer=workspace.task_id,
        cost=EvaluationCost(replies.tokens, replies.cached, replies.forward_tokens + scored_tokens),
    )
    return workspace.evaluations.write(evaluation), evaluation.cost


def layouts_known(workspace: Workspace, passing: Sequence[Passing]) -> list[Graded]:
    """Replies that earn full reward: of the prompts' demonstrations, of remade data, and of evaluations (passing)."""
    remade = [row for path in sorted(workspace.remade.glob("*.jsonl")) for row in read_rows(path)]
    return known_good(
        workspace.task,
        [each for prompt in workspace.prompts.all() for each in prompt.demonstrations],
        [*((row.source, row.reply) for row in remade), *((each.id, each.reply) for each in passing)],
    )
