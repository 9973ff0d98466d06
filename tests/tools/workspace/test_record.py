"""A run's record, also of earlier versions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nslora.graph.runs.run import Run
from nslora.graph.runs.view import runs
from nslora.tools.errors import RunError
from nslora.tools.workspace.record import RUN_FILE, migrated, read_run_file, recorded_settings
from nslora.tools.workspace.settings import RunSettings

Begin = Callable[..., Run]


def test_a_damaged_record_is_refused(begin: Begin, tmp_path: Path) -> None:
    for text in ("{}", "[]", '"s"', '{"format": "x"}', '{"format": 1}'):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / RUN_FILE).write_text(text)
        with pytest.raises(RunError, match="is not the folder of a run"):
            Run.open(tmp_path / "broken")
        assert [each.status for each in runs(tmp_path)] == ["unreadable"]


def test_settings_of_an_old_run_open_without_those_that_are_gone(begin: Begin) -> None:
    today = RunSettings(keep={"level": 0.45}, lora={"rank": 4}).model_dump(mode="json")
    old = {
        **today,
        "routing": {**today["routing"]},
        "keep": {**today["keep"], "interval_level": 0.95},
    }  # as 0.1.0 wrote them
    assert migrated(old) == migrated(today) == today
    as_it_went = {**today["routing"], "use_signal": True, "tries_from_start": None}
    del today["routing"]["use_signal"], today["routing"]["tries_from_start"]
    assert migrated(today)["routing"] == as_it_went

    folder = begin().folder
    record = json.loads((folder / RUN_FILE).read_text())
    record["settings"]["keep"]["interval_level"] = 0.9
    (folder / RUN_FILE).write_text(json.dumps(record))
    assert recorded_settings(folder, read_run_file(folder)) == Run.open(folder).workspace.settings


def test_a_setting_that_no_version_knew_is_refused(begin: Begin) -> None:
    folder = begin().folder
    record = read_run_file(folder)
    record["settings"]["keep"]["levle"] = 0.1
    with pytest.raises(RunError, match=r"does not take \(keep\.levle\)"):
        recorded_settings(folder, record)
