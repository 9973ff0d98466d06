"""textgrad_edit: propose a new prompt from the failures that a change of form could mend, and make its remade data."""

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
from nslora.tools.editor.editor import Edit, EditFailedError, PastEdit, Usage
from nslora.tools.editor.failures_view import describe_edit
from nslora.tools.errors import BudgetError, TooLongError
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.evaluation.screening import Screening
from nslora.tools.files import write_json
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example, from_record
from nslora.tools.workspace.prompt_check import check_for_run
from nslora.tools.workspace.workspace import Workspace

FAILURES_OFFERED = 8  # to the editor, which picks a few varied ones


def textgrad_edit(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Propose a new prompt for the candidate in force."""
    return step(state, workspace_for(runtime, "textgrad_edit"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Propose (kept adapter, new prompt); an editor that fails is recorded, and the prompt stays."""
    ledger, budget = CostLedger(workspace), Budget(state, workspace)
    editor, settings = workspace.editor, workspace.settings.editing
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
            validate=lambda prompt: check_for_run(prompt, workspace),
            candidates=settings.candidates,
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
        name = keep_record(state, workspace, failures, edit, screening)
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
    sources = {row.source for row in remade.rows}
    by_model = {row.source for row in remade.rows if row.adapter != LAYOUT}
    return ledger.propose(
        "textgrad",
        candidate=Candidate(adapter=state["kept"]["adapter"], prompt=prompt.hash),
        new_rows=len(remade.rows),
        note=f"{len(prompt.demonstrations)} demonstrations, "
        f"{len(sources)} of {described_sample(workspace)} remade "
        f"({len(by_model)} answered by the model, {len(sources - by_model)} put into a layout)"
        f"{screening.describe()}",
    )


def described_sample(workspace: Workspace) -> str:
    """The rows that remade data is made of, in words."""
    rows, most = len(workspace.task.train), workspace.settings.remade_rows
    return f"{rows} rows" if most is None or rows <= most else f"a sample of {most} of {rows} rows (remade_rows)"


def failures_to_show(state: AdaptationState, workspace: Workspace) -> list[Graded]:
    """Train failures, the largest form deficit first; never a row of validation or test."""
    replies = {
        each.id: each.thinking + each.reply for each in workspace.evaluations.of(state["kept_measured"]).failed("train")
    }
    shown = [i for i in material_of(state, workspace).form if i in replies][:FAILURES_OFFERED]
    return grade(workspace.task.reward, [workspace.examples[i] for i in shown], [replies[i] for i in shown])


def past_edits(state: AdaptationState, workspace: Workspace) -> list[PastEdit]:
    """Earlier edits with what they brought: the momentum that the editor is shown."""
    edits = []
    prompt = state["start"]["prompt"]  # the prompt that each round began with
    for record in state["rounds"]:
        candidate = record["candidate"]
        if candidate is None:
            continue
        if record["action"] == "textgrad":
            summary = describe_edit(workspace.prompts.get(prompt), workspace.prompts.get(candidate["prompt"]))
            edits.append(PastEdit(summary, record["numbers"].get("gain", 0.0), record["kept"]))
        if record["kept"]:
            prompt = candidate["prompt"]
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


def keep_record(
    state: AdaptationState, workspace: Workspace, failures: list[Graded], edit: Edit, screening: Screening
) -> str:
    """Write what the editor saw and said to `edits/<name>.json`, and return the name."""
    measured = state["kept_measured"]
    name = f"{state['round'] + 1}-{measured['key'] if measured else state['kept']['prompt']}"
    write_json(
        workspace.folder / "edits" / f"{name}.json",
        {
            "round": state["round"] + 1,
            "editor": workspace.editor.name,
            "kept": state["kept"],
            "failures": [each.example.id for each in failures],
            "critiques": edit.critiques,
            "problems": edit.problems,
            "candidates": [workspace.prompts.add(prompt) for prompt in edit.prompts],
            "proposed": edit.prompts[screening.best].hash,
            "screening": asdict(screening),
            "usage": asdict(edit.usage),
        },
    )
    return name
