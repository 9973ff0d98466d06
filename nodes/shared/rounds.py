"""What the rounds so far say to the nodes."""

from nslora.graph.state import AdaptationState, Kind, RoundRecord
from nslora.tools.dataset.selection import Material
from nslora.tools.workspace.workspace import Workspace


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
    """The train rows that this round's decision chose."""
    decision = state["decision"]
    if decision is None:
        return Material((), (), ())
    return Material.load(workspace.folder / decision["material"])
