"""The conditional edges."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nslora.graph.build import build_graph
from nslora.graph.runs.fork import fork
from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError, SettingsError

Begin = Callable[..., Run]


def test_an_action_that_there_is_not_is_refused(finished: Run, begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="action='LoRA': wanted lora or textgrad"):
        fork(finished, tmp_path / "fork", at=1, action="LoRA")  # type: ignore[arg-type]
    assert not (tmp_path / "fork").exists()
    run = begin("by-hand", max_rounds=2)
    with run.checkpointer() as saver:
        graph = build_graph(checkpointer=saver)
        state = graph.invoke(run.first_state(), run.config, context=run.context, interrupt_after=["classify"])
        with pytest.raises(RunError, match="holds the action 'dance'"):
            graph.update_state(run.config, {"decision": {**state["decision"], "action": "dance"}}, as_node="classify")
