"""A proposed prompt: checked before it may be proposed, and its remade data."""

import heapq
from collections.abc import Sequence

from nslora.graph.state import AdaptationState
from nslora.nodes.shared.budget import affordable_remakes
from nslora.tools.dataset.remade import Remade, remake, write_rows
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import Prompt, check_prompt
from nslora.tools.workspace.workspace import Workspace

LONGEST_COUNTED = 16  # questions whose tokens are counted to find the longest


def check(prompt: Prompt, workspace: Workspace) -> None:
    """Raise PromptError for a prompt that must not be proposed."""
    train, held_out = workspace.task.train, (*workspace.task.validation, *workspace.task.test)
    longest = longest_question([row.question for row in (*train, *held_out, *workspace.regression_set)], workspace)
    check_prompt(
        prompt,
        count_tokens=workspace.count_tokens,
        context_tokens=workspace.policy.context_tokens,
        longest_question=longest,
        max_new_tokens=workspace.task.max_new_tokens,
        forbidden_questions=[text for row in held_out for text in workspace.task.reader.quotable(row)],
        allowed_questions=[text for row in train for text in workspace.task.reader.quotable(row)],
        protected=workspace.settings.editing.protected,
        columns=workspace.task.columns,
    )


def longest_question(questions: Sequence[str], workspace: Workspace) -> str:
    """The question of most tokens among those of most bytes: counting them all takes long on a large task."""
    few = heapq.nlargest(LONGEST_COUNTED, dict.fromkeys(questions), key=lambda question: len(question.encode()))
    return max(few, key=lambda question: workspace.count_tokens([{"role": "user", "content": question}]))


def remake_under(
    prompt: Prompt,
    state: AdaptationState,
    workspace: Workspace,
    edit: str,
    on_progress: OnProgress,
    spent_flop: float = 0.0,
) -> Remade:
    """Make and store the remade data of a proposed prompt: answers to as many train rows as the budget holds, and the
    references of the others in their layouts.

    spent_flop: by this update so far. Raises BudgetError where not even the prompt's evaluation fits.
    """
    examples = affordable_remakes(prompt, state, workspace, spent_flop)
    asked = {example.id for example in examples}
    unasked = [row for row in workspace.task.train if row.id not in asked] if workspace.settings.remade_per_row else []
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
        unasked=unasked,
        on_progress=on_progress,
    )
    write_rows(workspace.remade / f"{prompt.hash}.jsonl", remade.rows)
    return remade
