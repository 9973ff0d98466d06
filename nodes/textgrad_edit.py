"""textgrad_edit: propose a new prompt from the failures that a change of form could mend, and make its remade data."""

from collections import Counter
from dataclasses import asdict

from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.cost import CostLedger
from nslora.nodes.shared.remake import remake_under
from nslora.nodes.shared.rounds import material_of
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.dataset.remade import LAYOUT
from nslora.tools.editor.briefing import Means, Situation
from nslora.tools.editor.editor import Edit, EditFailedError, PastEdit, Usage
from nslora.tools.editor.failures_view import describe_edit
from nslora.tools.errors import BudgetError, TooLongError
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.evaluation.records import Row
from nslora.tools.evaluation.screening import Screening
from nslora.tools.files import write_json
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded, Score, check_means
from nslora.tools.schema import Example, from_record
from nslora.tools.workspace.prompt_check import check_for_run, refuse_wrong_demonstrations
from nslora.tools.workspace.workspace import Workspace

FAILURES_OFFERED = 8  # at least, to an editor by "textgrad", which picks a few varied ones


def textgrad_edit(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Propose a new prompt for the candidate in force."""
    return step(state, workspace_for(runtime, "textgrad_edit"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Propose (kept adapter, new prompt); an editor that fails is recorded, and the prompt stays."""
    ledger, budget = CostLedger(workspace), Budget(state, workspace)
    editor = workspace.editor
    settings = workspace.settings.editing.under(editor.protocol)
    failures, until = failures_to_show(state, workspace), budget.deadline()
    editor.continue_from(
        state["editor_failures"],
        sum((from_record(Usage, each["editor"]) for each in state["rounds"] if each["editor"]), Usage()),
        adapter=state["kept"]["adapter"],
        until=until,
        tokens_left=budget.editing_tokens(),
        never_swallow=(GraphBubbleUp,),
        round_number=state["round"] + 1,
        on_wait=workspace.on_progress,
    )
    try:
        edit = editor.edit(
            budget.kept_prompt,
            failures,
            past=past_edits(state, workspace),
            validate=lambda prompt: check_edit(prompt, budget.kept_prompt, workspace),
            candidates=settings.candidates or 1,
            situation=situation_of(state, workspace) if settings.protocol == "reflect" else None,
        )
    except EditFailedError as error:
        ledger.edit(error.usage)
        count = editor.consecutive_failures
        # An editor that is given up counts as failed `patience` times in a row.
        in_a_row = max(count, settings.patience) if error.disabled else count
        return {**ledger.propose("textgrad", error=str(error)), "editor_failures": in_a_row}
    ledger.edit(edit.usage)
    try:
        screening = screen(edit.prompts, state, ledger, progress(workspace, "screening replies", until))
        name = keep_record(state, workspace, edit, screening)
        proposed = propose(edit, screening, name, state, ledger, until)
    except (BudgetError, TooLongError) as error:
        proposed = ledger.propose("textgrad", error=str(error))
    return {**proposed, "editor_failures": 0}


def propose(
    edit: Edit, screening: Screening, name: str, state: AdaptationState, ledger: CostLedger, until: float | None
) -> Changes:
    """The best of an edit's prompts with its remade data. Raises BudgetError if that is more than the budget holds."""
    workspace, prompt = ledger.workspace, edit.prompts[screening.best]
    on_progress = progress(workspace, "remade replies", until)
    remade = remake_under(prompt, state, ledger, name, on_progress, ledger.flop)
    sources, tokens = {row.source for row in remade.rows}, workspace.prompt_tokens(prompt)
    by_model = {row.source for row in remade.rows if row.adapter != LAYOUT}
    return ledger.propose(
        "textgrad",
        candidate=Candidate(adapter=state["kept"]["adapter"], prompt=prompt.hash),
        new_rows=len(remade.rows),
        note=f"{len(prompt.demonstrations)} demonstrations, "
        f"{len(sources)} of {described_sample(workspace)} remade "
        f"({len(by_model)} answered by the model, {len(sources - by_model)} put into a layout)"
        f"{'' if tokens is None else f', {tokens} tokens added to a row'}{screening.describe()}",
    )


def described_sample(workspace: Workspace) -> str:
    """The rows that remade data is made of, in words."""
    rows, most = len(workspace.task.train), workspace.settings.remade_rows
    return f"{rows} rows" if most is None or rows <= most else f"a sample of {most} of {rows} rows (remade_rows)"


def check_edit(prompt: Prompt, kept: Prompt, workspace: Workspace) -> None:
    """Raise PromptError for a prompt that an editor must not propose in the place of the kept one."""
    check_for_run(prompt, workspace)
    refuse_wrong_demonstrations(prompt, kept, workspace.task)


def failures_to_show(state: AdaptationState, workspace: Workspace) -> list[Graded]:
    """Train failures, the largest form deficit first; never a row of validation or test.

    By "textgrad" a few that lack form; by "reflect" also those that lack content alone, behind them.
    """
    evaluation = workspace.evaluations.of(state["kept_measured"])
    editing = workspace.settings.editing.under(workspace.editor.protocol)
    rows = evaluation.of("train")
    failed = {each.id: each for each in evaluation.failed("train") if each.id in workspace.examples}
    shown = [i for i in material_of(state, workspace).form if i in failed]
    if editing.protocol == "textgrad":
        shown = shown[: max(FAILURES_OFFERED, editing.failures or 0)]
    else:
        shown += [i for i in failed if i not in set(shown)]
    return [
        Graded(
            workspace.examples[i],
            failed[i].reply,
            Score(rows[i].value, rows[i].checks, failed[i].feedback),
            failed[i].thinking,
        )
        for i in shown
    ]


def situation_of(state: AdaptationState, workspace: Workspace) -> Situation:
    """What an editor is told beside the failures. Texts are of train rows; of validation there are means alone."""
    evaluation, task, policy = workspace.evaluations.of(state["kept_measured"]), workspace.task, workspace.policy
    failed, parameters = evaluation.failed("train"), policy.describe().get("parameters")
    by_id = {row.id: row for row in task.train}
    passing = [each for each in evaluation.passing if each.id in by_id]
    return Situation(
        goal=task.goal,
        policy=policy.name + (f", {parameters / 1e6:.3g} million parameters" if parameters else ""),
        max_reply_tokens=task.max_new_tokens,
        columns=task.columns,
        prompt_tokens=workspace.prompt_tokens(workspace.prompts.get(state["kept"]["prompt"])),
        references=[row.reference for row in task.train if row.reference] if task.reward.reveals else [],
        passing=[Graded(by_id[each.id], each.reply, Score(1.0, {}, "", each.reply), each.thinking) for each in passing],
        replies=[*(each.reply for each in failed), *(each.reply for each in passing)],
        truncated=sum(each.truncated for each in failed),
        verdicts=Counter(each.attribution.verdict for each in failed),
        train=means_of(list(evaluation.of("train").values())),
        validation=means_of(list(evaluation.of("validation").values())),
    )


def means_of(rows: list[Row]) -> Means:
    """Counts and means of a split."""
    checks = check_means([row.checks for row in rows])
    return Means(len(rows), sum(not row.passed for row in rows), mean([row.value for row in rows]), checks)


def past_edits(state: AdaptationState, workspace: Workspace) -> list[PastEdit]:
    """Earlier updates with what they brought, in all and for each check: the momentum that the editor is shown."""
    edits, start = [], state["start_measured"]
    prompt, before = state["start"]["prompt"], start["key"] if start else None  # that each round began with
    for number, record in enumerate(state["rounds"], 1):
        candidate, after = record["candidate"], record["evaluation"]
        if candidate is None:
            continue
        summary = describe_edit(workspace.prompts.get(prompt), workspace.prompts.get(candidate["prompt"]))
        old, new = (
            means_of(list(workspace.evaluations.load(key).of("validation").values())).checks
            if key is not None and key in workspace.evaluations
            else {}
            for key in (before, after)
        )
        gains = {name: new[name] - old[name] for name in new if name in old}
        gain, kept = record["numbers"].get("gain", 0.0), record["kept"]
        edits.append(PastEdit(summary, gain, kept, record["action"], number, gains))
        if kept:
            prompt, before = candidate["prompt"], after
    return edits


def screen(
    prompts: tuple[Prompt, ...], state: AdaptationState, ledger: CostLedger, on_progress: OnProgress
) -> Screening:
    """Ask the policy a few train questions under each prompt, half of them failing so far and half passing.

    If the budget does not hold that, the editor's first prompt stands.
    """
    if len(prompts) == 1:
        return Screening()
    workspace = ledger.workspace
    failing, passing = screening_rows(state, workspace)
    rows = [*failing, *passing]
    if not Budget(state, workspace).holds_screening(prompts, rows, ledger.flop):
        return Screening()
    answers = [workspace.graded_replies(each, state["kept"]["adapter"], rows, on_progress) for each in prompts]
    screening = Screening(
        tuple(mean([each.score.value for each in graded]) for graded, _ in answers),
        len(failing),
        len(passing),
        sum(replies.tokens for _, replies in answers),
        sum(replies.forward_tokens for _, replies in answers),
        tuple(tokens for prompt in prompts if (tokens := workspace.prompt_tokens(prompt)) is not None),
    )
    ledger.generate(screening.generated_tokens, screening.forward_tokens)
    return screening


def screening_rows(state: AdaptationState, workspace: Workspace) -> tuple[list[Example], list[Example]]:
    """Train rows that fail and that pass under the candidate in force; if one side is short, the other fills up."""
    most, by_id = workspace.settings.editing.screening_rows, workspace.examples
    failing = [by_id[i] for i in material_of(state, workspace).form if i in by_id]
    rows = workspace.evaluations.of(state["kept_measured"]).of("train").values()
    passing = [by_id[row.id] for row in rows if row.passed]
    few = min(len(passing), max(most // 2, most - len(failing)))
    return failing[: most - few], passing[:few]


def keep_record(state: AdaptationState, workspace: Workspace, edit: Edit, screening: Screening) -> str:
    """Write what the editor saw and said to `edits/<name>.json`, and return the name."""
    measured = state["kept_measured"]
    name = f"{state['round'] + 1}-{measured['key'] if measured else state['kept']['prompt']}"
    write_json(
        workspace.folder / "edits" / f"{name}.json",
        {
            "round": state["round"] + 1,
            "editor": workspace.editor.name,
            "kept": state["kept"],
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
