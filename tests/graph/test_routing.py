"""The conditional edges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from states import proposal, state

from nslora.graph.build import build_graph
from nslora.graph.routing import after_classify, after_monitor, after_update
from nslora.graph.runs.fork import fork
from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError, SettingsError
from nslora.tools.prompt import Prompt

Begin = Callable[..., Run]


@pytest.mark.parametrize(("stop", "goes_to"), [("", "classify"), ("round limit of 3 reached", "finish")])
def test_a_reason_to_stop_ends_the_loop(stop: str, goes_to: str) -> None:
    assert after_monitor(state(stop=stop)) == goes_to


@pytest.mark.parametrize(
    ("decision", "goes_to"),
    [
        ({"action": "finish"}, "finish"),
        ({"action": "lora"}, "lora_update"),
        ({"action": "textgrad"}, "textgrad_edit"),
    ],
)
def test_each_action_has_its_node(decision: Any, goes_to: str) -> None:
    assert after_classify(state(decision=decision)) == goes_to
    assert after_classify(state(decision=None, stop="nothing was measured")) == "finish"


@pytest.mark.parametrize(
    ("approve", "kind", "goes_to"),
    [
        ("nothing", "textgrad", "evaluate"),
        ("edits", "textgrad", "approve"),
        ("edits", "lora", "evaluate"),
        ("updates", "lora", "approve"),
    ],
)
def test_only_what_a_person_asked_for_waits(approve: Any, kind: str, goes_to: str) -> None:
    waiting = state(approve=approve, proposal=proposal(Prompt(), kind=kind))
    assert after_update(waiting) == goes_to
    assert after_update(state(approve=approve, proposal=proposal(kind=kind))) == "evaluate"
    assert after_update(state(approve=approve)) == "evaluate"


def test_an_action_that_there_is_not_is_refused(finished: Run, begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="action='LoRA': wanted lora or textgrad"):
        fork(finished, tmp_path / "fork", at=1, action="LoRA")  # type: ignore[arg-type]
    assert not (tmp_path / "fork").exists()
    run = begin("by-hand", max_rounds=2)
    with run.checkpointer() as saver:
        graph = build_graph(checkpointer=saver)
        state = graph.invoke(run.first_state(), run.config, context=run.context, interrupt_after=["classify"])
        with pytest.raises(RunError, match=r"decision\.action: .*came: 'dance'"):
            graph.update_state(run.config, {"decision": {**state["decision"], "action": "dance"}}, as_node="classify")
