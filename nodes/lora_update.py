"""lora_update: propose new weights, trained with TRL's SFTTrainer on rows that need content and on remade data."""

from collections.abc import Sequence
from dataclasses import replace

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.cost import CostLedger, Steps
from nslora.nodes.shared.rounds import material_of, training_prompt, tries
from nslora.nodes.shared.runtime import progress, workspace_for
from nslora.tools.dataset.remade import RemadeRow, known_rows, read_rows, rows_by_source
from nslora.tools.dataset.selection import training_rows
from nslora.tools.dataset.trajectories import remake_calls
from nslora.tools.errors import BudgetError, DivergedError, TooLongError
from nslora.tools.files import write_jsonl
from nslora.tools.inference.context_length import within_context
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.schema import Example
from nslora.tools.workspace.settings import SEEDS
from nslora.tools.workspace.upper_bounds import planned_tokens
from nslora.tools.workspace.workspace import Workspace


def lora_update(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Propose new weights for the candidate in force."""
    return step(state, workspace_for(runtime, "lora_update"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Train on from the kept adapter, under the prompt of waiting remade data (the kept prompt without any).

    The remade data waits no longer, also if the training job diverged: its rows are not offered again as new.
    """
    pool = state["remade"]
    return {**trained(state, workspace), "remade": {**pool, "waiting": False} if pool else None}


def trained(state: AdaptationState, workspace: Workspace) -> Changes:
    """The proposal of one training job."""
    ledger, budget, prompt_hash = CostLedger(workspace), Budget(state, workspace), training_prompt(state)
    try:
        rows, left_out = rows_to_train(state, ledger)
    except BudgetError as error:
        return ledger.propose("lora", error=str(error))
    if not rows:
        nothing = "no train row has a reference or a verified reply to learn from"
        if workspace.task.agent:
            nothing = "no trajectory of a train row earned full reward, greedy or sampled"
        return ledger.propose("lora", error=left_out or nothing)
    job = budget.fit(
        TrainingJob(
            tuple(rows),
            workspace.settings.lora.epochs,
            seed=(workspace.settings.seed * 1000 + tries(state["rounds"], "lora")) % SEEDS,
            start=state["kept"]["adapter"],
            progress=workspace.folder / "progress" / (workspace.task_id or f"round-{state['round'] + 1}"),
        )
    )
    if job.epochs < 1:
        return ledger.propose("lora", error="the budget leaves no room for one epoch of these rows")
    steps = Steps(progress(workspace, "steps", budget.deadline()))
    try:
        result = workspace.train(job, steps)
    except (BudgetError, DivergedError, TooLongError) as error:
        ledger.train(round(steps.share * planned_tokens(job, workspace)))
        return ledger.propose("lora", error=str(error))
    ledger.train(result.trained_tokens)
    return ledger.propose(
        "lora",
        candidate=Candidate(adapter=result.adapter, prompt=prompt_hash),
        epoch_losses_nats=list(result.epoch_losses),
        grad_norms=list(result.grad_norms),
        note=f"{described(rows)}, {result.steps} steps ({result.fast_path}){left_out and f'; {left_out}'}",
    )


def rows_to_train(state: AdaptationState, ledger: CostLedger) -> tuple[list[TrainingRow], str]:
    """The rows of the training job, recorded in `material/`; and in words, which rows the context had no room for.

    ledger: is charged with the trajectories that an agent makes to learn from.
    """
    workspace = ledger.workspace
    pool, settings, prompt_hash = state["remade"], workspace.settings, training_prompt(state)
    waiting = bool(pool and pool["waiting"])
    remade = rows_by_source(read_rows(workspace.remade / f"{prompt_hash}.jsonl"))
    train, most = workspace.task.train, settings.remade_rows
    if waiting and remade and most is not None and len(train) > most:
        # Plain references of the other rows would unteach the form that the remade ones teach.
        train = tuple(row for row in train if row.id in remade)
    without = [row for row in train if row.id not in remade]
    if without and prompt_hash == state["kept"]["prompt"]:
        remade |= rows_by_source(known_to_the_kept(without, state, ledger))
    if workspace.task.agent:  # a reference is no reply to one of an agent's calls
        train = tuple(replace(row, reference=None) for row in train)
    material = material_of(state, workspace)
    rows, left_out = within_context(
        training_rows(
            train,
            material,
            workspace.prompts.get(prompt_hash),
            remade,
            # A passing trajectory shows an agent's form as well as its content.
            everything=waiting or workspace.task.agent is not None,
            replay_share=settings.lora.replay_share,
            seed=f"{settings.seed}/{tries(state['rounds'], 'lora')}",
        ),
        workspace.policy.context_tokens,
        workspace.token_counts,
    )
    records = [
        {"source": row.source, "origin": row.origin, "completion": row.completion}
        | {"why": material.why(row, everything=waiting)}
        for row in rows
    ]
    write_jsonl(workspace.folder / "material" / f"{state['round'] + 1}-rows.jsonl", records)
    return rows, left_out


def known_to_the_kept(examples: list[Example], state: AdaptationState, ledger: CostLedger) -> Sequence[RemadeRow]:
    """Full-reward replies to these train rows from the evaluation of the candidate in force.

    There are none if the settings turn remade data off, or if the reward is costly. An agent's are the calls of passing
    trajectories; rows that were not looked at yet are run, and failing ones are tried again by samples.
    """
    workspace = ledger.workspace
    if workspace.task.agent:
        budget = Budget(state, workspace)
        until = budget.deadline()
        made = remake_calls(
            workspace.policy,
            workspace.replies,
            workspace.task,
            workspace.prompts.get(state["kept"]["prompt"]),
            budget.affordable_trajectories(examples),
            adapter=state["kept"]["adapter"],
            on_progress=progress(workspace, "trajectories to learn from", until),
        )
        ledger.generate(made.generated_tokens, made.forward_tokens)
        return made.rows
    if not workspace.settings.remade_per_row or workspace.task.reward.costly:
        return []
    evaluation = workspace.evaluations.of(state["kept_measured"])
    return known_rows(
        workspace.task.reward,
        workspace.prompts.get(state["kept"]["prompt"]),
        examples,
        own={each.id: each.thinking + each.reply for each in evaluation.passing},
        mended=evaluation.repaired,
        adapter=state["kept"]["adapter"],
    )


def described(rows: list[TrainingRow]) -> str:
    """The rows of a training job in a few words."""
    counts = {origin: sum(row.origin == origin for row in rows) for origin in ("remade", "reference", "replay")}
    return f"{len(rows)} rows ({', '.join(f'{count} {origin}' for origin, count in counts.items() if count)})"
