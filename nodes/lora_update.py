"""lora_update: propose new weights, trained with TRL's SFTTrainer on the rows that want content and on remade data."""

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Proposal
from nslora.nodes.shared.budget import Steps, deadline, fitted, planned_tokens
from nslora.nodes.shared.rounds import kept_evaluation, material_of, tries
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.dataset.remade import RemadeRow, known_rows, read_rows, rows_by_source
from nslora.tools.dataset.selection import training_rows
from nslora.tools.errors import BudgetError, DivergedError, TooLongError
from nslora.tools.files import write_jsonl
from nslora.tools.inference.context_length import within_context
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.schema import Example
from nslora.tools.workspace.settings import SEEDS
from nslora.tools.workspace.workspace import Workspace


def lora_update(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Propose new weights for the candidate in force."""
    return step(state, workspace_for(runtime, "lora_update"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Train on from the kept adapter, under the prompt of waiting remade data (the kept prompt without any)."""
    pool = state["remade"]
    waiting = bool(pool and pool["waiting"])
    prompt_hash = pool["prompt"] if pool and waiting else state["kept"]["prompt"]
    prompt = workspace.prompts.get(prompt_hash)
    tried = tries(state["rounds"], "lora")
    remade = rows_by_source(read_rows(workspace.remade / f"{prompt_hash}.jsonl"))
    without = [row for row in workspace.task.train if row.id not in remade]
    if without and prompt_hash == state["kept"]["prompt"]:
        remade |= rows_by_source(known_to_the_kept(without, state, workspace))
    material = material_of(state, workspace)
    rows = training_rows(
        workspace.task.train,
        material,
        prompt,
        remade,
        everything=waiting,
        replay_share=workspace.settings.lora.replay_share,
        seed=f"{workspace.settings.seed}/{tried}",
    )
    rows, left_out = within_context(rows, workspace.policy.context_tokens, workspace.token_counts)
    write_jsonl(
        workspace.folder / "material" / f"{state['round'] + 1}-rows.jsonl",
        [
            {
                "source": row.source,
                "origin": row.origin,
                "completion": row.completion,
                "why": material.why(row, everything=waiting),
            }
            for row in rows
        ],
    )
    if not rows:
        return failed(state, workspace, left_out or "no train row has a reference or a verified reply to learn from")
    task_id = workspace.task_id or f"round-{state['round'] + 1}"
    job = TrainingJob(
        tuple(rows),
        workspace.settings.lora.epochs,
        seed=(workspace.settings.seed * 1000 + tried) % SEEDS,
        start=state["kept"]["adapter"],
        progress=workspace.folder / "progress" / task_id,
    )
    job = fitted(job, state, workspace)
    if job.epochs < 1:
        return failed(state, workspace, "the budget leaves no room for one epoch of these rows")
    steps = Steps(progress(workspace, "steps", deadline(state, workspace)))
    try:
        result = workspace.train(job, steps)
    except (BudgetError, DivergedError, TooLongError) as error:
        return failed(state, workspace, str(error), round(steps.share * planned_tokens(job, workspace)))
    wall_s = workspace.clock.seconds
    proposal = Proposal(
        kind="lora",
        candidate=Candidate(adapter=result.adapter, prompt=prompt_hash),
        error=None,
        wall_s=wall_s,
        trained_tokens=result.trained_tokens,
        generated_tokens=0,
        flop=workspace.flop_rates.training * result.trained_tokens,
        editor={},
        epoch_losses_nats=list(result.epoch_losses),
        grad_norms=list(result.grad_norms),
        new_rows=0,
        note=f"{described(rows)}, {result.steps} steps ({result.fast_path}){left_out and f'; {left_out}'}",
    )
    changes: Changes = {"proposal": proposal, "wall_s": wall_s}
    if pool:
        changes["remade"] = {**pool, "waiting": False}
    return changes


def known_to_the_kept(examples: list[Example], state: AdaptationState, workspace: Workspace) -> list[RemadeRow]:
    """Full-reward replies to these train rows that the kept candidate's evaluation holds; none where remade data or
    reward calls are to be spared.
    """
    if not workspace.settings.remade_per_row or workspace.task.reward.costly:
        return []
    evaluation = kept_evaluation(state, workspace)
    mended = {
        each.id: each.attribution.repaired
        for each in evaluation.failed("train")
        if not each.truncated and each.attribution.verdict == "content" and each.attribution.repaired
    }
    return known_rows(
        workspace.task.reward,
        workspace.prompts.get(state["kept"]["prompt"]),
        examples,
        own={each.id: each.reply for each in evaluation.passing},
        mended=mended,
        adapter=state["kept"]["adapter"],
    )


def described(rows: list[TrainingRow]) -> str:
    """The rows of a training job in a few words."""
    counts = {origin: sum(row.origin == origin for row in rows) for origin in ("remade", "reference", "replay")}
    return f"{len(rows)} rows ({', '.join(f'{count} {origin}' for origin, count in counts.items() if count)})"


def failed(state: AdaptationState, workspace: Workspace, error: str, trained_tokens: int = 0) -> Changes:
    """A training job that came to nothing: recorded with what it spent, and the loop goes on from what is kept."""
    wall_s = workspace.clock.seconds
    proposal = Proposal(
        kind="lora",
        candidate=None,
        error=error,
        wall_s=wall_s,
        trained_tokens=trained_tokens,
        generated_tokens=0,
        flop=workspace.flop_rates.training * trained_tokens,
        editor={},
        epoch_losses_nats=[],
        grad_norms=[],
        new_rows=0,
        note="",
    )
    pool = state["remade"]
    # Rows that made a training job diverge are not offered again as new.
    return {"proposal": proposal, "wall_s": wall_s, "remade": {**pool, "waiting": False} if pool else None}
