"""What a run tells its editor: failures, what else it knows, earlier updates; and the record of what came of it."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nslora.tools.editor.briefing import Means, Situation
from nslora.tools.editor.editor import Edit, PastEdit
from nslora.tools.editor.failures_view import describe_edit
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.evaluation.records import Evaluation
from nslora.tools.evaluation.rollouts import with_trajectory
from nslora.tools.evaluation.screening import Screening
from nslora.tools.files import write_json
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded, Score, check_means
from nslora.tools.schema import Example
from nslora.tools.workspace.workspace import Workspace

FAILURES_OFFERED = 8  # at least, to an editor by "textgrad", which picks a few varied ones


def failures_to_show(workspace: Workspace, evaluation: Evaluation, form: Sequence[str]) -> list[Graded]:
    """Train failures, the largest form deficit first; never a row of validation or test.

    By "textgrad" a few that lack form (form: their ids); by "reflect" also those that lack content alone, behind them.
    """
    editing = workspace.settings.editing.under(workspace.editor.protocol)
    rows = evaluation.of("train")
    failed = {each.id: each for each in evaluation.failed("train") if each.id in workspace.examples}
    shown = [i for i in form if i in failed]
    if editing.protocol == "textgrad":
        shown = shown[: max(FAILURES_OFFERED, editing.failures or 0)]
    else:
        shown += [i for i in failed if i not in set(shown)]
    return [
        Graded(
            with_trajectory(workspace.examples[i], failed[i].trajectory),
            failed[i].reply,
            Score(rows[i].value, rows[i].checks, failed[i].feedback),
            failed[i].thinking,
        )
        for i in shown
    ]


def situation_of(workspace: Workspace, evaluation: Evaluation, prompt: Prompt) -> Situation:
    """What an editor is told beside the failures. Texts are of train rows; of validation there are means alone.

    evaluation: of the candidate in force, with this prompt.
    """
    task, policy, by_id = workspace.task, workspace.policy, {row.id: row for row in workspace.task.train}
    failed, parameters = evaluation.failed("train"), policy.describe().get("parameters")
    passing = [each for each in evaluation.passing if each.id in by_id]
    return Situation(
        goal=task.goal,
        policy=policy.name + (f", {parameters / 1e6:.3g} million parameters" if parameters else ""),
        max_reply_tokens=task.max_new_tokens,
        columns=task.columns,
        prompt_tokens=workspace.prompt_tokens(prompt),
        references=[row.reference for row in task.train if row.reference] if task.reward.reveals else [],
        passing=[Graded(by_id[each.id], each.reply, Score(1.0, {}, "", each.reply), each.thinking) for each in passing],
        replies=[*(each.reply for each in failed), *(each.reply for each in passing)],
        truncated=sum(each.truncated for each in failed),
        verdicts=Counter(each.attribution.verdict for each in failed),
        train=means_of(evaluation, "train"),
        validation=means_of(evaluation, "validation"),
    )


def means_of(evaluation: Evaluation, split: str) -> Means:
    """Counts and means of a split."""
    rows = evaluation.of(split).values()
    checks = check_means([row.checks for row in rows])
    return Means(len(rows), sum(not row.passed for row in rows), mean([row.value for row in rows]), checks)


def past_edits(
    workspace: Workspace, rounds: Sequence[Mapping[str, Any]], prompt: str, before: str | None
) -> list[PastEdit]:
    """Earlier updates with what they brought, in all and for each check: the momentum that the editor is shown.

    prompt, before: hash of the prompt, and key of the evaluation, that the first round began with.
    """
    edits = []
    for number, record in enumerate(rounds, 1):
        candidate, after = record["candidate"], record["evaluation"]
        if candidate is None:
            continue
        old, new = (
            means_of(workspace.evaluations.load(key), "validation").checks
            if key is not None and key in workspace.evaluations
            else {}
            for key in (before, after)
        )
        gain, kept = record["numbers"].get("gain", 0.0), record["kept"]
        gains = {name: new[name] - old[name] for name in new if name in old}
        summary = describe_edit(workspace.prompts.get(prompt), workspace.prompts.get(candidate["prompt"]))
        edits.append(PastEdit(summary, gain, kept, record["action"], number, gains))
        if kept:
            prompt, before = candidate["prompt"], after
    return edits


def screening_rows(
    workspace: Workspace, evaluation: Evaluation, form: Sequence[str], shown: Collection[str]
) -> tuple[list[Example], list[Example]]:
    """Train rows that fail (form: their ids) and that pass; if one side is short, the other fills up.

    shown: Questions of the candidates' demonstrations; such a row would be copied from the prompt.
    """
    most, by_id = workspace.settings.editing.screening_rows, workspace.examples
    failing = [by_id[i] for i in form if i in by_id and by_id[i].asked not in shown]
    rows = evaluation.of("train").values()
    passing = [by_id[row.id] for row in rows if row.passed and by_id[row.id].asked not in shown]
    few = min(len(passing), max(most // 2, most - len(failing)))
    return failing[: most - few], passing[:few]


def record_edit(
    workspace: Workspace, edit: Edit, screening: Screening, number: int, kept: Mapping[str, Any], key: str
) -> str:
    """Write what the editor saw and said to `edits/<name>.json`, and return the name.

    Args:
        workspace: Of the run.
        edit: What the editor proposes.
        screening: Of its prompts.
        number: The round, from 1.
        kept: The candidate in force.
        key: Of its evaluation, or what else names the record.
    """
    name = f"{number}-{key}"
    write_json(
        workspace.folder / "edits" / f"{name}.json",
        {
            "round": number,
            "editor": workspace.editor.name,
            "kept": kept,
            "rows": edit.rows,
            "requests": edit.requests,
            "critiques": edit.critiques,
            "problems": edit.problems,
            "candidates": [workspace.prompts.add(prompt) for prompt in edit.prompts],
            "proposed": edit.prompts[screening.best].hash,
            "screening": asdict(screening),
            "usage": asdict(edit.usage),
        },
    )
    return name


def described_sample(workspace: Workspace) -> str:
    """The rows that remade data is made of, in words."""
    rows, most = len(workspace.task.train), workspace.settings.remade_rows
    return f"{rows} rows" if most is None or rows <= most else f"a sample of {most} of {rows} rows (remade_rows)"
