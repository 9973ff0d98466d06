"""The conditional edges. Pure: each reads a decision that a node wrote, and does no work."""

from collections.abc import Mapping
from typing import Literal

from nslora.graph.state import AdaptationState
from nslora.tools.errors import RunError

UpdateNode = Literal["lora_update", "textgrad_edit"]
NODE_OF: Mapping[str, UpdateNode] = {"lora": "lora_update", "textgrad": "textgrad_edit"}


def after_monitor(state: AdaptationState) -> Literal["finish", "classify"]:
    """Is there a reason to stop?"""
    return "finish" if state["stop"] else "classify"


def after_classify(state: AdaptationState) -> Literal["lora_update", "textgrad_edit", "finish"]:
    """Where did the router send this round?"""
    decision = state["decision"]
    if decision is None and not state["stop"]:
        raise RunError(
            "The classifier wrote no decision: wanted {'decision': {'action': 'lora', 'textgrad' or 'finish'}}. The "
            "edges of the loop go by it; what a Command(goto=...) names would run beside them."
        )
    if decision is None or decision["action"] == "finish":
        return "finish"
    return NODE_OF[decision["action"]]


def after_update(state: AdaptationState) -> Literal["approve", "evaluate"]:
    """Does a person want to see this proposal before it is measured?"""
    proposal, wanted = state["proposal"], state.get("approve", "nothing")
    if proposal is None or proposal["candidate"] is None or wanted == "nothing":
        return "evaluate"
    return "approve" if wanted == "updates" or proposal["kind"] == "textgrad" else "evaluate"
