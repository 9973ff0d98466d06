"""classify: what do the failures need, which rows could teach it, and which kind of update goes next?"""

from langgraph.runtime import Runtime

from nslora.graph.state import AdaptationContext, AdaptationState, Changes, Decision, Kind, Measured
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.rounds import choose_rows
from nslora.nodes.shared.runtime import workspace_for
from nslora.tools.classifier.attribution import Need, need_of
from nslora.tools.dataset.selection import Material
from nslora.tools.router.inputs import RouterInput
from nslora.tools.router.monitoring_signal import Progress, Update, closed, read_signal
from nslora.tools.router.strategies import strategy_named
from nslora.tools.schema import as_record
from nslora.tools.workspace.cost_estimate import update_tokens
from nslora.tools.workspace.workspace import Workspace


def classify(state: AdaptationState, runtime: Runtime[AdaptationContext]) -> Changes:
    """Decide which kind of update goes next."""
    return step(state, workspace_for(runtime, "classify"))


def step(state: AdaptationState, workspace: Workspace) -> Changes:
    """Write the decision, with its reasons, for the conditional edge to read."""
    kept = state["kept_measured"]
    if kept is None:
        return {"stop": "nothing was measured"}
    need = need_of([each.attribution for each in workspace.evaluations.load(kept["key"]).failed("validation")])
    material, material_file = choose_rows(state, kept, workspace)
    strategy = strategy_named(
        workspace.settings.strategy, settings=workspace.settings.routing, signal=workspace.settings.signal
    )
    router_input = router_input_of(state, workspace, kept, need, material)
    choice = Budget(state, workspace).allow(strategy.choose(router_input), strategy.seen(router_input))
    decision = Decision(
        action=choice.action,
        reason=choice.reason,
        evidence=dict(choice.evidence),
        demand={key: float(value) for key, value in as_record(need).items()},
        material=material_file,
    )
    return {"decision": decision, **({"stop": choice.reason} if choice.action == "finish" else {})}


def router_input_of(
    state: AdaptationState, workspace: Workspace, kept: Measured, need: Need, material: Material
) -> RouterInput:
    """What the strategies decide from."""
    remade, task, settings = state["remade"], workspace.task, workspace.settings
    return RouterInput(
        task=task.hash,
        round=state["round"],
        rounds_left=settings.max_rounds - state["round"],
        failures=kept["failures"],
        validation_reward=kept["reward"],
        target=settings.target,
        need=need if kept["failures"] else None,
        progress=signals(state, workspace, material),
        cost_tokens=update_tokens(task, settings),
        remade_waiting=remade["rows"] if remade and remade["waiting"] else 0,
        seed=settings.seed,
        history=tuple(Update.of(each) for each in state["rounds"]),
    )


def signals(state: AdaptationState, workspace: Workspace, material: Material) -> dict[Kind, Progress]:
    """The monitor's signal; edits are closed if no failure on train can be shown to the editor.

    They are closed for the rest of the run if the editor failed too often in a row, or reached a cap.
    """
    found = read_signal(state["signal"])
    if not material.form:
        found["textgrad"] = closed(found["textgrad"], "no_material")
    if state["editor_failures"] >= workspace.settings.editing.patience:
        found["textgrad"] = closed(found["textgrad"], "given_up")
    return found
