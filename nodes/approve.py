"""approve: show a proposed update to a person, and do what they say: accept, reject, or a prompt of their own.

A node of its own, since `interrupt` runs its node again from the top when the answer comes, perhaps a day later and in
another process.
"""

from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Proposal
from nslora.nodes.shared.budget import approval_rows, deadline
from nslora.nodes.shared.prompt_candidates import check, remake_under
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.errors import BudgetError, PromptError
from nslora.tools.evaluation.rollouts import ask, grade
from nslora.tools.files import write_json
from nslora.tools.prompt import Prompt, difference, parse
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
    shown = question(state, proposal, proposal["candidate"], workspace)
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
    proposal = {**charged(proposal, shown["screening"]), "person": {"answer": wanted}}
    if wanted == "reject":
        changes = turned_down(proposal, "rejected by a person")
    else:
        changes = {"proposal": proposal} if prompt is None else rewritten(state, proposal, prompt, workspace)
    # Seconds at work; those of waiting are not the run's.
    wall_s = workspace.clock.seconds
    return {
        **changes,
        "wall_s": wall_s,
        "proposal": {**changes["proposal"], "wall_s": changes["proposal"]["wall_s"] + wall_s},
    }


def question(state: AdaptationState, proposal: Proposal, candidate: Candidate, workspace: Workspace) -> dict[str, Any]:
    """What a person needs to decide: the diff, the figures of a small screening, and what it cost."""
    kept = state["kept"]
    return {
        "round": state["round"] + 1,
        "kind": proposal["kind"],
        "note": proposal["note"],
        "reason": state["decision"]["reason"] if state["decision"] else "",
        "diff": difference(workspace.prompts.get(kept["prompt"]), workspace.prompts.get(candidate["prompt"])),
        "prompt": workspace.prompts.get(candidate["prompt"]).render(),
        "adapter": {"kept": kept["adapter"], "proposed": candidate["adapter"]},
        "screening": screening(state, candidate, workspace),
        "editor": proposal["editor"],
        "trained_tokens": proposal["trained_tokens"],
        "answers": list(ANSWERS),
    }


def screening(state: AdaptationState, candidate: Candidate, workspace: Workspace) -> dict[str, float]:
    """Mean rewards of what is kept and of the candidate on a few train rows; validation is left to `evaluate`."""
    rows = approval_rows(state, workspace)
    found: dict[str, float] = {"rows": len(rows), "generated_tokens": 0, "flop": 0.0}
    for name, each in (("kept", state["kept"]), ("proposed", candidate)):
        replies = ask(
            workspace.policy,
            workspace.replies,
            workspace.prompts.get(each["prompt"]),
            [row.question for row in rows],
            adapter=each["adapter"],
            max_new_tokens=workspace.task.max_new_tokens,
            on_progress=progress(workspace, "screening replies"),
        )
        graded = grade(workspace.task.reward, rows, replies.texts)
        found[name] = float(sum(one.score.value for one in graded) / len(rows))
        found["generated_tokens"] += replies.tokens
        found["flop"] += workspace.flop_rates.forward * replies.forward_tokens
    return found


def read_answer(answer: Any, workspace: Workspace) -> tuple[str, Prompt | None]:
    """The answer and, for a rewrite, its prompt. Raises PromptError, to be shown, where it cannot be used."""
    if isinstance(answer, str):
        answer = {"answer": answer}
    wanted = answer.get("answer") if isinstance(answer, dict) else None
    if wanted not in ANSWERS:
        raise PromptError(
            f"The answer was {answer!r}: wanted {{'answer': 'accept'}}, {{'answer': 'reject'}} or "
            "{'answer': 'rewrite', 'prompt': the whole document}."
        )
    if wanted != "rewrite":
        return wanted, None
    document = answer.get("prompt", "")
    if not isinstance(document, str):
        raise PromptError(
            f"The prompt was a {type(document).__name__}: wanted the whole document as text "
            "(of a Prompt, its render())."
        )
    prompt = parse(document)
    check(prompt, workspace)
    return wanted, prompt


def charged(proposal: Proposal, screening: dict[str, float]) -> Proposal:
    """The proposal with what its screening took."""
    tokens = proposal["generated_tokens"] + int(screening["generated_tokens"])
    return {**proposal, "generated_tokens": tokens, "flop": proposal["flop"] + screening["flop"]}


def turned_down(proposal: Proposal, error: str) -> Changes:
    """The proposal fails, and no later training learns from what was remade under its prompt."""
    return {"proposal": {**proposal, "candidate": None, "error": error}}


def rewritten(state: AdaptationState, proposal: Proposal, prompt: Prompt, workspace: Workspace) -> Changes:
    """A person's prompt in the place of the proposed one, with remade data of its own."""
    name = workspace.prompts.add(prompt)
    proposal = {**proposal, "person": {"answer": "rewrite", "prompt": name}}
    try:
        remade = remake_under(
            prompt,
            state,
            workspace,
            f"person-{state['round'] + 1}",
            progress(workspace, "remade replies", deadline(state, workspace)),
            proposal["flop"],
        )
    except BudgetError as error:
        return turned_down(proposal, str(error))
    adapter = proposal["candidate"]["adapter"] if proposal["candidate"] else None
    return {
        "proposal": {
            **proposal,
            "candidate": Candidate(adapter=adapter, prompt=name),
            "new_rows": len(remade.rows),
            "generated_tokens": proposal["generated_tokens"] + remade.generated_tokens,
            "flop": proposal["flop"] + workspace.flop_rates.forward * remade.forward_tokens,
            "note": f"prompt rewritten by a person, {len(remade.rows)} rows remade",
        }
    }
