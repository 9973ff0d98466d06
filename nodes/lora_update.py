"""lora_update: propose new weights, trained with TRL's SFTTrainer on the rows that want content and on remade data."""

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Candidate, Changes, Proposal
from nslora.nodes.shared.budget import Steps, deadline, fitted, planned_tokens
from nslora.nodes.shared.rounds import material_of, tries
from nslora.nodes.shared.runtime import lab_for, progress
from nslora.tools.dataset.remade import RemadeRow, known_rows, read_rows, rows_by_source
from nslora.tools.dataset.selection import training_rows
from nslora.tools.errors import BudgetError, DivergedError, TooLongError
from nslora.tools.evaluation.records import read_evaluation, read_passing
from nslora.tools.files import write_jsonl
from nslora.tools.inference.context_length import within_context
from nslora.tools.policy import Burst, TrainingRow
from nslora.tools.schema import Example
from nslora.tools.workspace.settings import SEEDS
from nslora.tools.workspace.workspace import Lab


def lora_update(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Train on from the kept adapter, under the prompt of waiting remade data (the kept prompt without any)."""
    lab = lab_for(runtime)
    pool = state["remade"]
    waiting = bool(pool and pool["waiting"])
    prompt_hash = pool["prompt"] if pool and waiting else state["kept"]["prompt"]
    prompt = lab.prompts.get(prompt_hash)
    tried = tries(state["rounds"], "lora")
    remade = rows_by_source(read_rows(lab.remade / f"{prompt_hash}.jsonl"))
    without = [row for row in lab.task.train if row.id not in remade]
    if without and prompt_hash == state["kept"]["prompt"]:
        remade |= rows_by_source(known_to_the_kept(without, state, lab))
    material = material_of(state, lab)
    rows = training_rows(lab.task.train, material, prompt, remade, everything=waiting,
                         replay_share=lab.settings.lora.replay_share, seed=f"{lab.settings.seed}/{tried}")
    rows, left_out = within_context(rows, lab.policy.context_tokens, lab.token_counts)
    write_jsonl(lab.folder / "material" / f"{state['round'] + 1}-rows.jsonl",
                [{"source": row.source, "origin": row.origin, "completion": row.completion,
                  "why": material.why(row, everything=waiting)} for row in rows])
    if not rows:
        return failed(state, lab, left_out or "no train row has a reference or a verified reply to learn from")
    task_id = getattr(runtime.execution_info, "task_id", None) or f"round-{state['round'] + 1}"
    burst = Burst(tuple(rows), lab.settings.lora.epochs, seed=(lab.settings.seed * 1000 + tried) % SEEDS,
                  start=state["kept"]["adapter"], progress=lab.folder / "progress" / task_id)
    burst = fitted(burst, state, lab)
    if burst.epochs < 1:
        return failed(state, lab, "the budget leaves no room for one epoch of these rows")
    steps = Steps(progress("lora_update", "steps", deadline(state, lab)))
    try:
        result = lab.train(burst, steps)
    except (BudgetError, DivergedError, TooLongError) as error:
        return failed(state, lab, str(error), round(steps.share * planned_tokens(burst, lab)))
    wall_s = lab.clock.seconds
    proposal = Proposal(
        kind="lora", candidate=Candidate(adapter=result.adapter, prompt=prompt_hash), error=None, wall_s=wall_s,
        trained_tokens=result.trained_tokens, generated_tokens=0, flop=lab.flop_rates.training * result.trained_tokens,
        editor={},
        epoch_losses_nats=list(result.epoch_losses), grad_norms=list(result.grad_norms), new_rows=0,
        note=f"{described(rows)}, {result.steps} steps ({result.fast_path}){left_out and f'; {left_out}'}")
    changes: Changes = {"proposal": proposal, "wall_s": wall_s}
    if pool:
        changes["remade"] = {**pool, "waiting": False}
    return changes


def known_to_the_kept(examples: list[Example], state: AdaptationState, lab: Lab) -> list[RemadeRow]:
    """Full-reward replies to these train rows that the kept candidate's evaluation holds; none where remade data or
    reward calls are to be spared.
    """
    measured = state["kept_measured"]
    if measured is None or not lab.settings.remade_per_row or lab.task.reward.costly:
        return []
    path = lab.evaluations / f"{measured['key']}.jsonl"
    _, failures = read_evaluation(path)
    mended = {each.id: each.attribution.repaired for each in failures if each.split == "train" and not each.cut
              and each.attribution.verdict == "content" and each.attribution.repaired}
    return known_rows(lab.task.reward, lab.prompts.get(state["kept"]["prompt"]), examples,
                      own={each.id: each.reply for each in read_passing(path)}, mended=mended,
                      adapter=state["kept"]["adapter"])


def described(rows: list[TrainingRow]) -> str:
    """The rows of a burst in a few words."""
    counts = {origin: sum(row.origin == origin for row in rows) for origin in ("remade", "reference", "replay")}
    return f"{len(rows)} rows ({', '.join(f'{count} {origin}' for origin, count in counts.items() if count)})"


def failed(state: AdaptationState, lab: Lab, error: str, trained_tokens: int = 0) -> Changes:
    """A burst that came to nothing: recorded with what it spent, and the loop goes on from what is kept."""
    wall_s = lab.clock.seconds
    proposal = Proposal(kind="lora", candidate=None, error=error, wall_s=wall_s,
                        trained_tokens=trained_tokens, generated_tokens=0,
                        flop=lab.flop_rates.training * trained_tokens, editor={}, epoch_losses_nats=[],
                        grad_norms=[], new_rows=0, note="")
    pool = state["remade"]
    # Rows that made a burst diverge are not offered again as new.
    return {"proposal": proposal, "wall_s": wall_s, "remade": {**pool, "waiting": False} if pool else None}
