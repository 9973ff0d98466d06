"""textgrad_edit: propose a new prompt from the failures that a change of form could mend, and make its remade data."""

from dataclasses import asdict, dataclass
from typing import Any

from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Proposal
from nslora.nodes.shared.budget import deadline, editing_flop, editing_tokens, screening_fits
from nslora.nodes.shared.prompt_candidates import check, remake_under
from nslora.nodes.shared.rounds import kept_evaluation, material_of
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.dataset.remade import LAYOUT
from nslora.tools.editor.editor import Edit, EditFailedError, PastEdit, Usage
from nslora.tools.editor.failures_view import describe_edit
from nslora.tools.errors import BudgetError, TooLongError
from nslora.tools.evaluation.rollouts import ask, grade
from nslora.tools.files import write_json
from nslora.tools.policy import OnProgress
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.workspace.workspace import Workspace

FAILURES_OFFERED = 8  # to the editor, which picks a few varied ones


@dataclass(frozen=True)
class Screening:
    """Mean reward of each candidate of an edit on the same few train rows; none where there was only one."""

    rewards: tuple[float, ...] = ()
    failing: int = 0
    passing: int = 0
    generated_tokens: int = 0
    forward_tokens: int = 0

    @property
    def best(self) -> int:
        """Number of the candidate to propose; the editor's first where they tie."""
        return self.rewards.index(max(self.rewards)) if self.rewards else 0

    def describe(self) -> str:
        if not self.rewards:
            return ""
        rewards = ", ".join(f"{reward:.2f}" for reward in self.rewards)
        return (
            f"; candidate {self.best + 1} of {len(self.rewards)}, screened on {self.failing} failing and "
            f"{self.passing} passing train rows (rewards {rewards})"
        )


@dataclass(frozen=True)
class Screened:
    """An edit with its screening, and the model FLOPs that both took."""

    edit: Edit
    screening: Screening
    flop: float


def textgrad_edit(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Propose a new prompt for the candidate in force."""
    return step(state, workspace_for(runtime, "textgrad_edit"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Propose (kept adapter, new prompt); an editor that fails is recorded, and the prompt stays."""
    kept = workspace.prompts.get(state["kept"]["prompt"])
    failures = failures_to_show(state, workspace)
    until = deadline(state, workspace)
    workspace.editor.never_swallow = (GraphBubbleUp,)
    workspace.editor.continue_from(
        state["editor_failures"],
        spent_so_far(state),
        adapter=state["kept"]["adapter"],
        until=until,
        tokens_left=editing_tokens(state, workspace),
    )
    try:
        edit = workspace.editor.edit(
            kept,
            failures,
            past=past_edits(state, workspace),
            validate=lambda prompt: check(prompt, workspace),
            candidates=workspace.settings.editing.candidates,
        )
    except EditFailedError as error:
        return failed(workspace, error)
    flop = editing_flop(edit.usage, workspace)
    try:
        screening = screen(edit.prompts, state, workspace, flop, progress(workspace, "screening replies", until))
        flop += workspace.flop_rates.forward * screening.forward_tokens
        return proposed(Screened(edit, screening, flop), failures, state, workspace, until)
    except (BudgetError, TooLongError) as error:
        wall_s = workspace.clock.seconds
        return {
            "proposal": {**blank(asdict(edit.usage), wall_s), "error": str(error), "flop": flop},
            "wall_s": wall_s,
            "editor_failures": 0,
        }


def proposed(
    screened: Screened, failures: list[Graded], state: AdaptationState, workspace: Workspace, until: float | None
) -> Changes:
    """The best of an edit's prompts with its remade data. Raises BudgetError where that is more than is left."""
    edit, screening = screened.edit, screened.screening
    prompt = edit.prompts[screening.best]
    prompt_hash = workspace.prompts.add(prompt)
    name = keep_record(state, workspace, failures, edit, screening)
    remade = remake_under(prompt, state, workspace, name, progress(workspace, "remade replies", until), screened.flop)
    proposal = blank(asdict(edit.usage), workspace.clock.seconds)
    sources = {row.source for row in remade.rows}
    by_model = {row.source for row in remade.rows if row.adapter != LAYOUT}
    proposal |= {
        "candidate": Candidate(adapter=state["kept"]["adapter"], prompt=prompt_hash),
        "generated_tokens": screening.generated_tokens + remade.generated_tokens,
        "new_rows": len(remade.rows),
        "flop": screened.flop + workspace.flop_rates.forward * remade.forward_tokens,
        "note": f"{len(prompt.demonstrations)} demonstrations, "
        f"{len(sources)} of {len(workspace.task.train)} rows remade "
        f"({len(by_model)} answered by the model, {len(sources - by_model)} put into a layout)"
        f"{screening.describe()}",
    }
    return {"proposal": proposal, "wall_s": proposal["wall_s"], "editor_failures": 0}


def failed(workspace: Workspace, error: EditFailedError) -> Changes:
    """An edit that came to nothing: recorded, and the loop goes on. An editor given up counts as `patience` of them."""
    wall_s = workspace.clock.seconds
    proposal = {**blank(asdict(error.usage), wall_s), "flop": editing_flop(error.usage, workspace)}
    count = workspace.editor.consecutive_failures
    return {
        "proposal": {**proposal, "error": str(error)},
        "wall_s": wall_s,
        "editor_failures": max(count, workspace.settings.editing.patience) if error.disabled else count,
    }


def blank(usage: dict[str, float | bool], wall_s: float) -> Proposal:
    """A proposal that proposes nothing yet."""
    return Proposal(
        kind="textgrad",
        candidate=None,
        error=None,
        wall_s=wall_s,
        trained_tokens=0,
        generated_tokens=0,
        flop=0.0,
        editor=usage,
        epoch_losses_nats=[],
        grad_norms=[],
        new_rows=0,
        note="",
    )


def failures_to_show(state: AdaptationState, workspace: Workspace) -> list[Graded]:
    """Train failures, the largest form deficit first; never a row of validation or test."""
    replies = {each.id: each.reply for each in kept_evaluation(state, workspace).failed("train")}
    shown = [i for i in material_of(state, workspace).form if i in replies][:FAILURES_OFFERED]
    return grade(workspace.task.reward, [workspace.examples[i] for i in shown], [replies[i] for i in shown])


def spent_so_far(state: AdaptationState) -> Usage:
    """What all edits of this run have cost, also those of other processes."""
    usages: list[dict[str, Any]] = [record["editor"] for record in state["rounds"] if record["editor"]]
    return sum((Usage(**usage) for usage in usages), Usage())


def past_edits(state: AdaptationState, workspace: Workspace) -> list[PastEdit]:
    """Earlier edits with what they brought: the momentum that the editor is shown."""
    edits = []
    prompt = state["start"]["prompt"]  # the one that was in force before each round
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
    prompts: tuple[Prompt, ...],
    state: AdaptationState,
    workspace: Workspace,
    spent_flop: float,
    on_progress: OnProgress,
) -> Screening:
    """Ask the policy a few train questions under each prompt, half of them failing so far and half passing.

    Where the budget does not hold that, the editor's first prompt stands. spent_flop: by this update so far.
    """
    if len(prompts) == 1:
        return Screening()
    failing, passing = screening_rows(state, workspace)
    rows = [*failing, *passing]
    if not screening_fits(prompts, rows, state, workspace, spent_flop):
        return Screening()
    asked = [
        ask(
            workspace.policy,
            workspace.replies,
            prompt,
            [row.question for row in rows],
            adapter=state["kept"]["adapter"],
            max_new_tokens=workspace.task.max_new_tokens,
            on_progress=on_progress,
        )
        for prompt in prompts
    ]
    rewards = tuple(
        float(sum(each.score.value for each in grade(workspace.task.reward, rows, replies.texts)) / len(rows))
        for replies in asked
    )
    return Screening(
        rewards,
        len(failing),
        len(passing),
        sum(each.tokens for each in asked),
        sum(each.forward_tokens for each in asked),
    )


def screening_rows(state: AdaptationState, workspace: Workspace) -> tuple[list[Example], list[Example]]:
    """Train rows that fail and that pass under what is kept; where one side is short, the other fills up."""
    most = workspace.settings.editing.screening_rows
    by_id = {row.id: row for row in workspace.task.train}
    failing = [by_id[i] for i in material_of(state, workspace).form if i in by_id]
    passing = [by_id[row.id] for row in kept_evaluation(state, workspace).of("train").values() if row.passed]
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
