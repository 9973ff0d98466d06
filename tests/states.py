"""States of a run, and the workspaces that steps of nodes are tested with."""

from pathlib import Path
from typing import Any

from fakes import ObedientPolicy

from nslora.graph.runs.run import Run
from nslora.graph.state import AdaptationState, Measured, Proposal, RoundRecord, first_state
from nslora.nodes.evaluate import step as evaluate
from nslora.nodes.monitor import step as monitor
from nslora.tools.prompt import Prompt
from nslora.tools.tasks.task import Task
from nslora.tools.testing.scripted_chat import ScriptedChat
from nslora.tools.workspace.workspace import Workspace


def workspace(tmp_path: Path, task: Task, policy: Any = None, editor: Any = None, **settings: Any) -> Workspace:
    """The workspace of a new run over a policy without a model."""
    model = policy or ObedientPolicy()
    chat = editor or ScriptedChat(["critique"], repeat=True)
    return Run.create(tmp_path / "run", task=task, model=model, editor=chat, reuse_replies=False, **settings).workspace


def state(prompt: str = "p", **changes: Any) -> AdaptationState:
    """A first state with these keys changed."""
    return {**first_state(prompt), **changes}  # type: ignore[typeddict-item]


def after_start(room: Workspace) -> AdaptationState:
    """The state in which round 1 is decided: the start is measured and kept."""
    begun = state(room.prompts.add(room.task.prompt))
    begun = state(**{**begun, **evaluate(begun, room)})
    return state(**{**begun, **monitor(begun, room)})


def measured(**changes: Any) -> Measured:
    """The summary of an evaluation in which half of twenty validation rows failed."""
    found: dict[str, Any] = {
        "key": "start",
        "reward": 0.5,
        "potential": 0.5,
        "all_checks": 0.5,
        "checks": {},
        "loss_nats": None,
        "failures": 10,
        "train_reward": 0.5,
        "wall_s": 1.0,
        "generated_tokens": 0,
        "cached_replies": 0,
        "flop": 0.0,
    }
    return {**found, **changes}  # type: ignore[typeddict-item]


def proposal(prompt: Prompt | None = None, **changes: Any) -> Proposal:
    """A proposed prompt, or an update that failed."""
    found: dict[str, Any] = {
        "kind": "textgrad",
        "candidate": {"adapter": None, "prompt": prompt.hash} if prompt else None,
        "error": None if prompt else "no usable prompt",
        "wall_s": 2.0,
        "trained_tokens": 0,
        "generated_tokens": 5,
        "flop": 100.0,
        "editor": {},
        "epoch_losses_nats": [],
        "grad_norms": [],
        "new_rows": 0,
        "note": "",
    }
    return {**found, **changes}  # type: ignore[typeddict-item]


def record(**changes: Any) -> RoundRecord:
    """A measured and dropped edit."""
    found: dict[str, Any] = {**proposal(), "action": "textgrad", "kept": False, "numbers": {}, "error": None}
    return {**found, **changes}  # type: ignore[typeddict-item]
