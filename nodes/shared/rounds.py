"""What the rounds so far say to the nodes."""

from nslora.graph.state import AdaptationState, Kind, Measured, RoundRecord, first_state
from nslora.tools.dataset.selection import Material, choose_material
from nslora.tools.workspace.record import read_run_file
from nslora.tools.workspace.workspace import Workspace


def first_state_of(workspace: Workspace) -> AdaptationState:
    """The state to begin with: the base model, or the start adapter on it, under the task's prompt."""
    return first_state(
        workspace.prompts.add(workspace.task.prompt),
        approve=workspace.settings.approve,
        adapter=read_run_file(workspace.folder).get("adapter"),
    )


def is_empty(state: AdaptationState) -> bool:
    """Whether the graph was begun with {}; some keys have a value in every state."""
    return state.keys() <= {"rounds", "wall_s", "approve"}


def tries(rounds: list[RoundRecord], kind: Kind) -> int:
    """The updates of a kind so far, kept or not. What an update draws at random goes by this and not by the round:
    strategies and forks that come to the same update by other ways make the same one, and comparisons are paired.
    """
    return sum(record["action"] == kind for record in rounds)


def training_prompt(state: AdaptationState) -> str:
    """Hash of the prompt that a training job trains under: that of waiting remade data, else the kept one."""
    pool = state["remade"]
    return pool["prompt"] if pool and pool["waiting"] else state["kept"]["prompt"]


def material_of(state: AdaptationState, workspace: Workspace) -> Material:
    """The train rows that this round's decision chose; a decision of a user's own node may leave the choice open."""
    decision, kept = state["decision"], state["kept_measured"]
    if decision is None or kept is None:
        return Material((), (), ())
    if name := decision.get("material"):
        return Material.load(workspace.folder / name)
    return choose_rows(state, kept, workspace)[0]


def choose_rows(state: AdaptationState, kept: Measured, workspace: Workspace) -> tuple[Material, str]:
    """Choose the train rows for each kind of update by the evaluation of what is kept; give them and their file."""
    evaluation = workspace.evaluations.load(kept["key"])
    seed = f"{workspace.settings.seed}/{tries(state['rounds'], 'textgrad')}"
    name = f"material/{state['round'] + 1}-{kept['key']}.json"
    material = choose_material(workspace.task.train, evaluation.rows, evaluation.failures, seed=seed)
    material.save(workspace.folder / name)
    return material, name
