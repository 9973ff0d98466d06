"""approve: show a proposed update to a person, who accepts it, rejects it or gives a prompt of their own.

It is a node of its own, since LangGraph runs a node with an `interrupt` again from the top when the answer comes,
perhaps a day later and in another process.
"""

from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Proposal
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.cost import CostLedger
from nslora.nodes.shared.remake import remake_under
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.errors import BudgetError, PromptError
from nslora.tools.files import write_json
from nslora.tools.prompt import Prompt, difference, parse
from nslora.tools.workspace.prompt_check import check_for_run
from nslora.tools.workspace.record import QUESTION_FILE
from nslora.tools.workspace.workspace import Workspace

ANSWERS = ("accept", "reject", "rewrite")


def approve(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Let a person accept, reject or rewrite the proposed update."""
    return step(state, workspace_for(runtime, "approve"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Ask until the answer can be used: {"answer": "accept"}, "reject", or "rewrite" with {"prompt": document}."""
    proposal = state["proposal"]
    if proposal is None or proposal["candidate"] is None:
        return {}
    ledger = CostLedger(workspace)
    shown = question(state, proposal, proposal["candidate"], ledger)
    problem = ""
    write_json(workspace.folder / QUESTION_FILE, {"round": shown["round"], "kind": shown["kind"]})
    while True:
        workspace.clock.save()  # a person may take a day, the run did not
        answer = interrupt({**shown, "problem": problem})
        try:
            wanted, prompt = read_answer(answer, workspace)
            break
        except PromptError as error:
            problem = str(error)
    (workspace.folder / QUESTION_FILE).unlink(missing_ok=True)
    proposal = {**proposal, "person": {"answer": wanted}}
    if wanted == "reject":  # then no training job learns from what was remade under the prompt
        proposal = {**proposal, "candidate": None, "error": "rejected by a person"}
    elif prompt is not None:
        proposal = rewritten(state, proposal, prompt, ledger)
    return ledger.add_to(proposal)


def question(state: AdaptationState, proposal: Proposal, candidate: Candidate, ledger: CostLedger) -> dict[str, Any]:
    """What a person needs to decide: the diff, the mean rewards on a few train rows, and what the update cost."""
    prompts = ledger.workspace.prompts
    kept, proposed = prompts.get(state["kept"]["prompt"]), prompts.get(candidate["prompt"])
    return {
        "round": state["round"] + 1,
        "kind": proposal["kind"],
        "note": proposal["note"],
        "reason": state["decision"].get("reason", "") if state["decision"] else "",
        "diff": difference(kept, proposed),
        "prompt": proposed.render(),
        "adapter": {"kept": state["kept"]["adapter"], "proposed": candidate["adapter"]},
        "screening": screening(state, candidate, ledger),
        "editor": proposal["editor"],
        "trained_tokens": proposal["trained_tokens"],
        "answers": list(ANSWERS),
    }


def screening(state: AdaptationState, candidate: Candidate, ledger: CostLedger) -> dict[str, float]:
    """Mean rewards of the kept and the proposed candidate on a few train rows; only `evaluate` asks validation."""
    workspace = ledger.workspace
    rows = Budget(state, workspace).approval_rows()
    rewards = {}
    for name, each in (("kept", state["kept"]), ("proposed", candidate)):
        prompt, on_progress = workspace.prompts.get(each["prompt"]), progress(workspace, "screening replies")
        rewards[name], _ = ledger.mean_reward(prompt, each["adapter"], rows, on_progress)
    return {"rows": len(rows), "generated_tokens": ledger.generated_tokens, "flop": ledger.flop, **rewards}


def read_answer(answer: Any, workspace: Workspace) -> tuple[str, Prompt | None]:
    """The answer and, for a rewrite, its prompt. Raises PromptError with what to answer instead."""
    if isinstance(answer, str):
        answer = {"answer": answer}
    wanted = answer.get("answer") if isinstance(answer, dict) else None
    if wanted not in ANSWERS or (wanted == "rewrite") != ("prompt" in answer):
        raise PromptError(
            f"The answer was {answer!r}: wanted {{'answer': 'accept'}}, {{'answer': 'reject'}} or "
            "{'answer': 'rewrite', 'prompt': the whole document}."
        )
    if wanted != "rewrite":
        return wanted, None
    document = answer["prompt"]
    if not isinstance(document, str):
        raise PromptError(
            f"The prompt was a {type(document).__name__}: wanted the whole document as text "
            "(of a Prompt, its render())."
        )
    prompt = parse(document)
    check_for_run(prompt, workspace)
    return wanted, prompt


def rewritten(state: AdaptationState, proposal: Proposal, prompt: Prompt, ledger: CostLedger) -> Proposal:
    """The proposal with a person's prompt in place of its own, and with remade data of that prompt."""
    workspace = ledger.workspace
    name = workspace.prompts.add(prompt)
    proposal = {**proposal, "person": {"answer": "rewrite", "prompt": name}}
    edit, spent_flop = f"person-{state['round'] + 1}", proposal["flop"] + ledger.flop
    on_progress = progress(workspace, "remade replies", Budget(state, workspace).deadline())
    try:
        remade = remake_under(prompt, state, ledger, edit, on_progress, spent_flop)
    except BudgetError as error:
        return {**proposal, "candidate": None, "error": str(error)}
    adapter = proposal["candidate"]["adapter"] if proposal["candidate"] else None
    return {
        **proposal,
        "candidate": Candidate(adapter=adapter, prompt=name),
        "new_rows": len(remade.rows),
        "note": f"prompt rewritten by a person, {len(remade.rows)} rows remade",
    }
