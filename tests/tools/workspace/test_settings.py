"""Settings of a run."""

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import CANARY

from nslora.graph.runs.run import Run
from nslora.tools.errors import SettingsError


@pytest.mark.parametrize("address", [f"http://me:{CANARY}@host/v1", f"https://host/v1?key={CANARY}"])
def test_an_editors_address_with_a_key_in_it_is_refused_without_showing_it(
    begin: Callable[..., Run], tmp_path: Path, address: str
) -> None:
    with pytest.raises(SettingsError, match="must hold no user, password or query") as caught:
        begin(editor="some-model", editor_base_url=address)
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown
    assert not (tmp_path / "run").exists()
