"""A run's record, `run.json`, and the names of the files beside it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nslora.tools.errors import RunError
from nslora.tools.workspace.settings import RunSettings

RUN_FILE = "run.json"
OWN_THREAD = re.compile(r"nslora-.+-[0-9a-f]{12}")  # threads that runs name; no user or server names one like that
OLD_THREAD = "adaptation"  # thread of every run before threads had names of their own
QUESTION_FILE = "question.json"  # exists while a person is asked
POLICY_FILE = "policy.json"  # what a replay needs to know of the policy without loading it
FORMAT = 1  # of a run's folder; a folder of a higher format is left alone
KEYS = {"created", "settings", "editor_is_object", "task"}
UNKNOWN_ONCE = {"remade_rows": None}  # settings of runs that began before there was a limit
# Of runs that began before there were these settings: how they went.
ADDED: dict[str, dict[str, Any]] = {
    "editing.": {"protocol": "textgrad"},
    "routing.": {"tries_from_start": None, "use_signal": True},
}
REMOVED = {"keep.interval_level"}  # settings of earlier versions that changed no decision


def read_run_file(folder: Path) -> dict[str, Any]:
    """Read the record of a run, with the settings of an earlier version migrated.

    Raises:
        RunError: The folder is not a run, or a newer version of nslora wrote it.
    """
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is not the folder of a run ({RUN_FILE} is missing or damaged).") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise RunError(f"{folder} is not the folder of a run ({RUN_FILE} is damaged).")
    if record["format"] > FORMAT:
        raise RunError(
            f"{folder} was written by a newer nslora (format {record['format']}, this one knows {FORMAT}): "
            "upgrade nslora; nothing was changed."
        )
    if missing := KEYS - record.keys():
        raise RunError(f"{folder} is not the folder of a run ({RUN_FILE} is damaged: no {', '.join(sorted(missing))}).")
    return {**record, "settings": UNKNOWN_ONCE | migrated(record["settings"])}


def migrated(settings: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Settings of any earlier version without those that were removed since.

    A run that names no protocol of its editor was begun when there was only `textgrad`.

    Args:
        settings: Recorded settings, or one group of them.
        group: Name of the group with a dot, "" for all settings.
    """
    return {name: value for name, value in ADDED.get(group, {}).items() if name not in settings} | {
        name: migrated(value, f"{group}{name}.") if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if f"{group}{name}" not in REMOVED
    }


def recorded_settings(folder: str | Path, record: Mapping[str, Any]) -> RunSettings:
    """The settings that a run began with. Raises RunError if this version does not know one of them."""
    try:
        return RunSettings(**record["settings"])
    except ValidationError as error:
        names = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise RunError(
            f"{folder} has settings that this version of nslora does not take ({names}): use the version "
            "that began it; nothing was changed."
        ) from None


def refuse_half_begun(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Raise RunError if a fork or a replay was killed before its folder was complete."""
    origin = record.get("origin") or {}
    if not origin.get("whole", True):
        raise RunError(
            f"{folder} is a {origin['kind']} that was interrupted before its folder was complete: delete the folder, "
            f"and make it again from {origin['run']}."
        )
