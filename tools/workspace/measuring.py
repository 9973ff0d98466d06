"""The evaluation of a candidate: asked, graded, and attributed by what the run knows of right layouts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nslora.tools.agents.mending import mend_of
from nslora.tools.agents.running import run_agent
from nslora.tools.dataset.remade import read_rows
from nslora.tools.evaluation.records import Evaluation, EvaluationCost, Passing
from nslora.tools.evaluation.rollouts import evaluation_of, known_good, reference_losses
from nslora.tools.files import sha256_of_json
from nslora.tools.policy import OnProgress
from nslora.tools.rewards.score import Graded
from nslora.tools.trajectory import Trajectory
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
    losses: list[float | None] = [None] * len(task.validation)
    scored_tokens = 0
    if task.agent is None:  # a reference is no reply to one of an agent's calls
        losses, scored_tokens = reference_losses(
            workspace.policy, workspace.replies, prompt, task.validation, adapter=candidate["adapter"]
        )
    first, last = len(task.validation), len(task.validation) + len(sample)
    passing = [_passing(graded[i]) for i in range(first, last) if graded[i].score.passed and i not in replies.truncated]
    mended, mending = mended_trajectories(workspace, candidate, graded[:last], on_progress)
    evaluation = evaluation_of(
        key,
        {"validation": graded[:first], "train": graded[first:last], "anchor": graded[last:]},
        task,
        layouts_known(workspace, [*before.passing, *passing]),
        losses=losses,
        passing=passing,
        truncated={graded[i].example.id for i in replies.truncated if first <= i < last},
        payer=workspace.task_id,
        cost=EvaluationCost(
            replies.tokens + mending.tokens,
            replies.cached,
            replies.forward_tokens + scored_tokens + mending.forward_tokens,
        ),
        mended=mended,
    )
    return workspace.evaluations.write(evaluation), evaluation.cost


def mended_trajectories(
    workspace: Workspace, candidate: Mapping[str, Any], graded: Sequence[Graded], on_progress: OnProgress
) -> tuple[dict[str, Trajectory], EvaluationCost]:
    """Failing trajectories of an agent, each once more with its first unreadable call mended, and their cost."""
    failing = [each.example for each in graded if each.example.trajectory and not each.score.passed]
    mends = {row.id: mend for row in failing if (mend := mend_of(row.trajectory)) is not None}
    rows = [replace(row, trajectory=None) for row in failing if row.id in mends]
    if not rows:
        return {}, EvaluationCost()
    flown = run_agent(
        workspace.policy,
        workspace.replies,
        workspace.task,
        workspace.prompts.get(candidate["prompt"]),
        rows,
        adapter=candidate["adapter"],
        mends=mends,
        on_progress=on_progress,
    )
    found = dict(zip((row.id for row in rows), flown.trajectories, strict=True))
    return found, EvaluationCost(flown.tokens, flown.cached, flown.forward_tokens)


def _passing(graded: Graded) -> Passing:
    trajectory = graded.example.trajectory
    return Passing(graded.example.id, graded.reply, graded.thinking, trajectory.to_json() if trajectory else "")


def layouts_known(workspace: Workspace, passing: Sequence[Passing]) -> list[Graded]:
    """Replies that earn full reward: of the prompts' demonstrations, of remade data, and of evaluations (passing)."""
    remade = [row for path in sorted(workspace.remade.glob("*.jsonl")) for row in read_rows(path) if not row.dialogue]
    return known_good(
        workspace.task,
        [each for prompt in workspace.prompts.all() for each in prompt.demonstrations],
        [
            *((row.source, row.reply, "") for row in remade),
            *((each.id, each.reply, each.trajectory) for each in passing),
        ],
    )
