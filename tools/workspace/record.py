"""A run's record, `run.json`, and the names of what stands beside it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nslora.tools.errors import RunError
from nslora.tools.workspace.settings import RunSettings

RUN_FILE = "run.json"
OWN_THREAD = re.compile(r"nslora-.+-[0-9a-f]{12}")  # as a run names its thread; no user's or server's looks so
OLD_THREAD = "adaptation"  # of runs from before threads had names of their own
QUESTION_FILE = "question.json"  # there while a person is asked
POLICY_FILE = "policy.json"  # what a replay must know of the policy without loading it
FORMAT = 1  # of a run's folder; a folder of a higher one is left alone


def refuse_half_begun(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Raise RunError where a fork or a replay was killed before it had all that it begins with."""
    origin = record.get("origin") or {}
    if not origin.get("whole", True):
        raise RunError(
            f"{folder} is a {origin['kind']} that was interrupted before it was whole: delete the folder, "
            f"and make it again from {origin['run']}."
        )


def recorded_settings(folder: str | Path, record: Mapping[str, Any]) -> RunSettings:
    """The settings that a run was begun with. Raises RunError where this version does not know one of them."""
    try:
        return RunSettings(**record["settings"])
    except ValidationError as error:
        names = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise RunError(
            f"{folder} has settings that this version of nslora does not take ({names}): use the version "
            "that began it; nothing was changed."
        ) from None


def read_run_file(folder: Path) -> dict[str, Any]:
    """The record that a run's folder begins with. Raises RunError where there is none."""
    try:
        record: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is not the folder of a run ({RUN_FILE} is missing or damaged).") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise RunError(f"{folder} is not the folder of a run ({RUN_FILE} is damaged).")
    if record["format"] > FORMAT:
        raise RunError(
            f"{folder} was written by a newer nslora (format {record['format']}, this one knows {FORMAT}): "
            "upgrade nslora; nothing was changed."
        )
    if missing := {"created", "settings", "editor_is_object", "task"} - record.keys():
        raise RunError(f"{folder} is not the folder of a run ({RUN_FILE} is damaged: no {', '.join(sorted(missing))}).")
    return record
