"""A run's record."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nslora.graph.runs.run import Run
from nslora.graph.runs.view import runs
from nslora.tools.errors import RunError
from nslora.tools.workspace.record import RUN_FILE

Begin = Callable[..., Run]


def test_a_record_that_is_none_is_named(begin: Begin, tmp_path: Path) -> None:
    for text in ("{}", "[]", '"s"', '{"format": "x"}', '{"format": 1}'):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / RUN_FILE).write_text(text)
        with pytest.raises(RunError, match="is not the folder of a run"):
            Run.open(tmp_path / "broken")
        assert [each.status for each in runs(tmp_path)] == ["unreadable"]
