"""textgrad_edit: propose a new prompt from the failures that a change of form could mend, and make its remade data."""

import time
from dataclasses import asdict

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Proposal, RemadePool
from nslora.nodes.classify import material_of
from nslora.nodes.workplace import lab_for, progress
from nslora.tools.editor import EditFailedError, PastEdit
from nslora.tools.evaluation import ask, grade, read_evaluation
from nslora.tools.lab import Lab
from nslora.tools.policy import Advance
from nslora.tools.prompt import Prompt, check_prompt
from nslora.tools.remake import Remade, remake, write_rows
from nslora.tools.rewards import Graded
from nslora.tools.task import Example

FAILURES_SHOWN = 8      # offered to the editor, which picks a few varied ones
SCREENING_ROWS = 8      # train rows that tell several candidates of one edit apart


def textgrad_edit(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Propose (kept adapter, new prompt); an editor that fails is recorded, and the prompt stays."""
    lab = lab_for(runtime)
    started = time.monotonic()
    kept = lab.prompts.get(state["kept"]["prompt"])
    lab.editor.consecutive_failures = state["editor_failures"]
    try:
        edit = lab.editor.edit(kept, failures_to_show(state, lab), past=past_edits(state),
                               validate=lambda prompt: check(prompt, lab))
    except EditFailedError as error:
        proposal = blank(asdict(error.usage), time.monotonic() - started)
        return {"proposal": {**proposal, "error": str(error)}, "wall_s": proposal["wall_s"],
                "editor_failures": state["editor_failures"] + 1}
    prompt = screened(edit.prompts, state, lab)
    prompt_hash = lab.prompts.add(prompt)
    remade = remake_under(prompt, state, lab, progress("textgrad_edit", "remade replies"))
    proposal = blank(asdict(edit.usage), time.monotonic() - started)
    proposal |= {
        "candidate": Candidate(adapter=state["kept"]["adapter"], prompt=prompt_hash),
        "generated_tokens": remade.generated_tokens, "new_rows": len(remade.rows),
        "note": f"{len(prompt.demonstrations)} demonstrations, {len(remade.rows)} of {len(lab.task.train)} rows remade"}
    changes: Changes = {"proposal": proposal, "wall_s": proposal["wall_s"], "editor_failures": 0}
    if remade.rows:
        changes["remade"] = RemadePool(prompt=prompt_hash, rows=len(remade.rows), waiting=True)
    return changes


def blank(usage: dict[str, float | bool], wall_s: float) -> Proposal:
    """A proposal that proposes nothing yet."""
    return Proposal(kind="textgrad", candidate=None, error=None, wall_s=wall_s, trained_tokens=0, generated_tokens=0,
                    editor=usage, epoch_losses_nats=[], grad_norms=[], new_rows=0, note="")


def failures_to_show(state: AdaptationState, lab: Lab) -> list[Graded]:
    """Train failures, the largest form deficit first; never a row of validation or test."""
    kept = state["kept_measured"]
    if kept is None:
        return []
    _, failures = read_evaluation(lab.evaluations / f"{kept['key']}.jsonl")
    replies = {each.id: each.reply for each in failures if each.split == "train"}
    by_id = {row.id: row for row in lab.task.train}
    shown = [i for i in material_of(state, lab).form if i in replies][:FAILURES_SHOWN]
    return [Graded(by_id[i], replies[i], lab.task.reward(by_id[i], replies[i])) for i in shown]


def past_edits(state: AdaptationState) -> list[PastEdit]:
    """Earlier edits with what they brought: the momentum that the editor is shown."""
    return [PastEdit(record["note"], record["numbers"].get("gain", 0.0), record["kept"])
            for record in state["rounds"] if record["action"] == "textgrad" and record["candidate"] is not None]


def check(prompt: Prompt, lab: Lab) -> None:
    """Raise PromptError for a prompt that must not be proposed."""
    held_out = (*lab.task.validation, *lab.task.test)
    longest = max((row.question for row in (*lab.task.train, *held_out)), key=len)
    check_prompt(prompt, count_tokens=lab.policy.count_tokens, context_tokens=lab.policy.context_tokens,
                 longest_question=longest, max_new_tokens=lab.task.max_new_tokens,
                 forbidden_questions=[row.question for row in held_out])


def screened(prompts: tuple[Prompt, ...], state: AdaptationState, lab: Lab) -> Prompt:
    """The prompt with the highest reward on a few train rows; the editor's first where they tie."""
    if len(prompts) == 1:
        return prompts[0]
    rows = screening_rows(state, lab)

    def reward(prompt: Prompt) -> float:
        replies = ask(lab.policy, lab.replies, prompt, [row.question for row in rows], adapter=state["kept"]["adapter"],
                      max_new_tokens=lab.task.max_new_tokens)
        return float(sum(each.score.value for each in grade(lab.task.reward, rows, replies.texts)))

    return max(prompts, key=reward)


def screening_rows(state: AdaptationState, lab: Lab) -> list[Example]:
    """Half failing, half mastered train rows."""
    material = material_of(state, lab)
    wanted = [*material.form[:SCREENING_ROWS // 2], *material.mastered[:SCREENING_ROWS // 2]]
    return [row for row in lab.task.train if row.id in wanted]


def remake_under(prompt: Prompt, state: AdaptationState, lab: Lab, advance: Advance) -> Remade:
    """Make and store the remade data of a proposed prompt."""
    remade = remake(lab.policy, lab.replies if lab.settings.reuse_replies else None, lab.task.reward, prompt,
                    lab.task.train, adapter=state["kept"]["adapter"], max_new_tokens=lab.task.max_new_tokens,
                    advance=advance)
    write_rows(lab.remade / f"{prompt.hash}.jsonl", remade.rows)
    return remade
