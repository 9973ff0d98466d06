"""What a run's folder begins with: its record, `run.json`, and the checks before anything is written."""

import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nslora.tools.checkpoints import without_password
from nslora.tools.errors import RunError, SettingsError
from nslora.tools.files import quoted, write_json
from nslora.tools.lab import FORMAT, RUN_FILE, read_run_file
from nslora.tools.run_lock import sole_writer
from nslora.tools.settings import RunSettings
from nslora.tools.task import Task

OLD_THREAD = "adaptation"       # of runs from before threads had names of their own
FREE_SPACE_BYTES = 200e6        # adapters, checkpoints and replies of an ordinary run take less


def write_record(folder: Path, task: Task, settings: RunSettings, *, editor_is_object: bool,
                 checkpoints: str | None = None, origin: dict[str, Any] | None = None) -> None:
    """Write `run.json`, the last thing before a run exists.

    checkpoints: URL of a database, None for a file in the folder; its password is left out. origin: of a fork or a
    replay, {"run", "kind", "round", ...}.
    """
    write_json(folder / RUN_FILE, {
        "format": FORMAT, "created": datetime.now(UTC).isoformat(timespec="seconds"),
        # Of its own in any database: two runs must never share a thread.
        "thread": f"{task.name}-{uuid.uuid4().hex[:12]}",
        "settings": settings.model_dump(mode="json"), "editor_is_object": editor_is_object,
        "task": {"name": task.name, "source": task.source, "options": dict(task.options), "hash": task.hash,
                 "prompt": task.prompt.hash},
        "checkpoints": without_password(checkpoints) if checkpoints else None, "origin": origin})


def read_settings(**values: Any) -> RunSettings:
    """RunSettings, with a readable SettingsError where a value is unknown or out of range."""
    try:
        return RunSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        known = f"; known: {', '.join(RunSettings.model_fields)}" if first["type"] == "extra_forbidden" else ""
        came = "" if place == "editor_base_url" else f" (came: {first['input']!r})"     # there, a secret was in it
        raise SettingsError(f"Setting {place}: {first['msg']}{came}{known}.") from None


def probe(task: Task) -> None:
    """Ask the reward about one row of each split, before anything is written. Raises RewardError."""
    for split in (task.train, task.validation, task.test):
        task.reward(split[0], split[0].reference or "")


def refuse_unusable(folder: Path, *, overwrite: bool = False) -> None:
    """Raise RunError where a new run cannot live in `folder`; with `overwrite` an earlier run in it is deleted."""
    if overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        try:
            read_run_file(folder)
        except RunError as error:
            raise RunError(f"{folder} exists and is not the folder of a run, so it is not overwritten: name another "
                           "folder.") from error
        with sole_writer(folder):
            shutil.rmtree(folder)
    if folder.exists() and (not folder.is_dir() or any(not begun(path) for path in folder.iterdir())):
        raise RunError(f"{folder} exists already: name another folder, or continue it with nslora resume "
                       f"{quoted(folder)}.")
    parent = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(parent).free
    if free < FREE_SPACE_BYTES:
        raise RunError(f"Only {free / 1e6:.0f} MB are free in {parent}, a run needs {FREE_SPACE_BYTES / 1e6:.0f} MB: "
                       "make room, or name a folder elsewhere.")


def begun(path: Path) -> bool:
    """Whether a file is the half-written record of a run that was killed before it began."""
    return path.name.startswith(f".{RUN_FILE}.") and path.suffix == ".partial"


def make_folder(folder: Path) -> None:
    """Create the folder of a new run. Raises RunError where that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {folder} cannot be made ({error.strerror}): name another one.") from error
