"""classify: what do the failures need, which rows could teach it, and which kind of update goes next?"""

import json
from dataclasses import asdict
from pathlib import Path

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Changes, Decision, Kind, Measured
from nslora.nodes.monitor import history
from nslora.nodes.workplace import lab_for
from nslora.tools.attribution import Demand, demand
from nslora.tools.evaluation import read_evaluation
from nslora.tools.lab import Lab
from nslora.tools.material import Material, choose_material
from nslora.tools.signal import KINDS, progress
from nslora.tools.strategy import Situation, strategy_named

# Cost of a kind before it ran, in tokens that go forward through the whole model: a step of training counts three
# times its tokens (forward and backward), and with LoRA on the top third and a frozen trunk a third of that remains.
TRAINING_COST_PER_TOKEN = 1.0
GENERATION_COST_PER_TOKEN = 1.0


def classify(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Write the decision, with its reasons, for the conditional edge to read."""
    lab = lab_for(runtime)
    kept = state["kept_measured"]
    if kept is None:
        return {"stop": "nothing was measured"}
    rows, failures = read_evaluation(lab.evaluations / f"{kept['key']}.jsonl")
    need = demand([each.attribution for each in failures if each.split == "validation"])
    seed = f"{lab.settings.seed}/{state['round']}"
    material_file = f"material/{state['round'] + 1}-{kept['key']}.json"
    choose_material(lab.task.train, rows, failures, seed=seed).save(lab.folder / material_file)
    strategy = strategy_named(lab.settings.strategy, settings=lab.settings.routing, signal=lab.settings.signal)
    choice = strategy.choose(situation_of(state, lab, kept, need))
    decision = Decision(action=choice.action, reason=choice.reason, evidence=dict(choice.evidence),
                        demand={key: float(value) for key, value in asdict(need).items()}, material=material_file)
    changes: Changes = {"decision": decision}
    if choice.action == "finish":
        changes["stop"] = choice.reason
    return changes


def situation_of(state: AdaptationState, lab: Lab, kept: Measured, need: Demand) -> Situation:
    """What the strategies decide from."""
    updates = tuple(history(state["rounds"]))
    remade = state["remade"]
    return Situation(
        round=state["round"], rounds_left=lab.settings.max_rounds - state["round"], failures=kept["failures"],
        validation_reward=kept["reward"], target=lab.settings.target, demand=need if kept["failures"] else None,
        progress={kind: progress(kind, updates, lab.settings.signal) for kind in KINDS},
        cost_tokens=expected_cost(lab), remade_waiting=remade["rows"] if remade and remade["waiting"] else 0,
        seed=lab.settings.seed, history=updates)


def expected_cost(lab: Lab) -> dict[Kind, float]:
    """Tokens through the model that one update of each kind takes.

    By formula and not by the clock, or the same seed would decide otherwise on a busy machine.
    """
    rows, reply = len(lab.task.train), lab.task.max_new_tokens
    return {"lora": TRAINING_COST_PER_TOKEN * rows * lab.settings.lora.epochs * reply,
            "textgrad": GENERATION_COST_PER_TOKEN * rows * reply}


def material_of(state: AdaptationState, lab: Lab) -> Material:
    """The train rows that this round's decision chose."""
    decision = state["decision"]
    if decision is None:
        return Material((), (), ())
    saved = json.loads(Path(lab.folder / decision["material"]).read_text(encoding="utf-8"))
    return Material(**{key: tuple(value) for key, value in saved.items()})
