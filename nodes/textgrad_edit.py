"""textgrad_edit: propose a new prompt from the failures that a change of form could mend, and make its remade data."""

from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.cost import CostLedger
from nslora.nodes.shared.remake import remake_under
from nslora.nodes.shared.rounds import material_of
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.dataset.remade import LAYOUT
from nslora.tools.editor.editor import Edit, EditFailedError, Usage
from nslora.tools.errors import BudgetError, TooLongError
from nslora.tools.evaluation.screening import Screening
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import Prompt
from nslora.tools.schema import from_record
from nslora.tools.workspace.editing import (
    described_sample,
    failures_to_show,
    past_edits,
    record_edit,
    screening_rows,
    situation_of,
)
from nslora.tools.workspace.prompt_check import check_for_run
from nslora.tools.workspace.workspace import Workspace


def textgrad_edit(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Propose a new prompt for the candidate in force."""
    return step(state, workspace_for(runtime, "textgrad_edit"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Propose (kept adapter, new prompt); an editor that fails is recorded, and the prompt stays."""
    ledger, budget = CostLedger(workspace), Budget(state, workspace)
    editor, until, kept = workspace.editor, budget.deadline(), budget.kept_prompt
    settings = workspace.settings.editing.under(editor.protocol)
    evaluation, start = workspace.evaluations.of(state["kept_measured"]), state["start_measured"]
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
            kept,
            failures_to_show(workspace, evaluation, material_of(state, workspace).form),
            past=past_edits(workspace, state["rounds"], state["start"]["prompt"], start["key"] if start else None),
            validate=lambda prompt: check_for_run(prompt, workspace, kept),
            candidates=settings.candidates or 1,
            situation=situation_of(workspace, evaluation, kept) if settings.protocol == "reflect" else None,
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
        proposed = propose(edit, screening, state, ledger, progress(workspace, "remade replies", until))
    except (BudgetError, TooLongError) as error:
        proposed = ledger.propose("textgrad", error=str(error))
    return {**proposed, "editor_failures": 0}


def propose(
    edit: Edit, screening: Screening, state: AdaptationState, ledger: CostLedger, on_progress: OnProgress
) -> Changes:
    """The best of an edit's prompts with its remade data. Raises BudgetError if that is more than the budget holds."""
    workspace, prompt, kept = ledger.workspace, edit.prompts[screening.best], state["kept"]
    measured = state["kept_measured"]
    name = record_edit(
        workspace, edit, screening, state["round"] + 1, kept, measured["key"] if measured else kept["prompt"]
    )
    remade = remake_under(prompt, state, ledger, name, on_progress, ledger.flop)
    sources, tokens = {row.source for row in remade.rows}, workspace.prompt_tokens(prompt)
    by_model = {row.source for row in remade.rows if row.adapter != LAYOUT}
    return ledger.propose(
        "textgrad",
        candidate=Candidate(adapter=kept["adapter"], prompt=prompt.hash),
        new_rows=len(remade.rows),
        note=f"{len(prompt.demonstrations)} demonstrations, "
        f"{len(sources)} of {described_sample(workspace)} remade "
        f"({len(by_model)} answered by the model, {len(sources - by_model)} put into a layout)"
        f"{'' if tokens is None else f', {tokens} tokens added to a row'}{screening.describe()}",
    )


def screen(
    prompts: tuple[Prompt, ...], state: AdaptationState, ledger: CostLedger, on_progress: OnProgress
) -> Screening:
    """Ask the policy a few train questions under each prompt, half of them failing so far and half passing.

    If the budget does not hold that, the editor's first prompt stands.
    """
    if len(prompts) == 1:
        return Screening()
    workspace = ledger.workspace
    evaluation, form = workspace.evaluations.of(state["kept_measured"]), material_of(state, workspace).form
    shown = {each.question for prompt in prompts for each in prompt.demonstrations}
    failing, passing = screening_rows(workspace, evaluation, form, shown)
    rows = [*failing, *passing]
    if not rows:
        return Screening()
    if not Budget(state, workspace).holds_screening(prompts, rows, ledger.flop):
        return Screening()
    answers = [ledger.mean_reward(each, state["kept"]["adapter"], rows, on_progress) for each in prompts]
    return Screening(
        tuple(reward for reward, _ in answers),
        len(failing),
        len(passing),
        sum(replies.tokens for _, replies in answers),
        sum(replies.forward_tokens for _, replies in answers),
        tuple(tokens for prompt in prompts if (tokens := workspace.prompt_tokens(prompt)) is not None),
    )
