"""The remade data of a proposed prompt."""

from nslora.graph.state import AdaptationState
from nslora.nodes.shared.budget import Budget, in_order
from nslora.nodes.shared.cost import CostLedger
from nslora.tools.dataset.remade import Remade, remake, write_rows
from nslora.tools.dataset.trajectories import remake_calls
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import Prompt


def remake_under(
    prompt: Prompt, state: AdaptationState, ledger: CostLedger, edit: str, on_progress: OnProgress, spent_flop: float
) -> Remade:
    """Make and store the remade data of a proposed prompt.

    The policy answers as many rows of a sample of train as the budget holds; the references of the sample's others are
    put into its layouts.

    Args:
        prompt: The proposed one.
        state: Of the run.
        ledger: Of the node; it is charged with the replies.
        edit: Name of the edit that proposed the prompt, for the rows' record.
        on_progress: Counts replies.
        spent_flop: Model FLOPs of this update so far.

    Raises:
        BudgetError: If not even the prompt's evaluation fits, or if on_progress raises it.
    """
    workspace = ledger.workspace
    budget = Budget(state, workspace)
    examples = budget.affordable_remakes(prompt, spent_flop)
    if workspace.task.agent:
        remade = remake_calls(
            workspace.policy,
            workspace.replies,
            workspace.task,
            prompt,
            examples,
            adapter=state["kept"]["adapter"],
            edit=edit,
            on_progress=on_progress,
        )
        return stored(remade, prompt, ledger)
    asked = {example.id for example in examples}
    remade = remake(
        workspace.policy,
        workspace.replies,
        workspace.task.reward,
        prompt,
        examples,
        adapter=state["kept"]["adapter"],
        max_new_tokens=workspace.task.max_new_tokens,
        per_row=workspace.settings.remade_per_row,
        edit=edit,
        unasked=[row for row in in_order(budget.remade_sample(), workspace.task.train) if row.id not in asked],
        on_progress=on_progress,
    )
    return stored(remade, prompt, ledger)


def stored(remade: Remade, prompt: Prompt, ledger: CostLedger) -> Remade:
    """Charge the remade data, and write it to its file."""
    ledger.generate(remade.generated_tokens, remade.forward_tokens)
    write_rows(ledger.workspace.remade / f"{prompt.hash}.jsonl", remade.rows)
    return remade
