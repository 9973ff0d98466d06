"""A proposed prompt: checked before it may be proposed, and its remade data."""
import heapq
from collections.abc import Sequence

from nslora.graph.state import AdaptationState
from nslora.nodes.shared.budget import affordable_remakes
from nslora.tools.dataset.remade import Remade, remake, write_rows
from nslora.tools.policy import Advance
from nslora.tools.prompt import Prompt, check_prompt
from nslora.tools.workspace.workspace import Lab

LONGEST_COUNTED = 16    # questions whose tokens are counted to find the longest


def check(prompt: Prompt, lab: Lab) -> None:
    """Raise PromptError for a prompt that must not be proposed."""
    train, held_out = lab.task.train, (*lab.task.validation, *lab.task.test)
    longest = longest_question([row.question for row in (*train, *held_out, *lab.anchor)], lab)
    check_prompt(prompt, count_tokens=lab.count_tokens, context_tokens=lab.policy.context_tokens,
                 longest_question=longest, max_new_tokens=lab.task.max_new_tokens,
                 forbidden_questions=[row.question for row in held_out],
                 allowed_questions=[row.question for row in train], protected=lab.settings.editing.protected)


def longest_question(questions: Sequence[str], lab: Lab) -> str:
    """The question of most tokens among those of most bytes: counting them all takes long on a large task."""
    few = heapq.nlargest(LONGEST_COUNTED, dict.fromkeys(questions), key=lambda question: len(question.encode()))
    return max(few, key=lambda question: lab.count_tokens([{"role": "user", "content": question}]))


def remake_under(prompt: Prompt, state: AdaptationState, lab: Lab, edit: str, advance: Advance,
                 spent_flop: float = 0.0) -> Remade:
    """Make and store the remade data of a proposed prompt: answers to as many train rows as the budget holds, and the
    references of the others in their layouts.

    spent_flop: by this update so far. Raises BudgetError where not even the prompt's evaluation fits.
    """
    examples = affordable_remakes(prompt, state, lab, spent_flop)
    asked = {example.id for example in examples}
    unasked = [row for row in lab.task.train if row.id not in asked] if lab.settings.remade_per_row else []
    remade = remake(lab.policy, lab.replies, lab.task.reward, prompt, examples,
                    adapter=state["kept"]["adapter"], max_new_tokens=lab.task.max_new_tokens,
                    per_row=lab.settings.remade_per_row, edit=edit, unasked=unasked, advance=advance)
    write_rows(lab.remade / f"{prompt.hash}.jsonl", remade.rows)
    return remade
