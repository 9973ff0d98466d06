"""What a run's folder begins with: its record, `run.json`, and the checks before anything is written."""

import inspect
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from pydantic import ValidationError

from nslora.graph.build import refuse_cached
from nslora.graph.lock import HOLDER_FILE, LOCK_FILE, sole_writer
from nslora.graph.runs.checkpoints import without_password
from nslora.graph.tracking.tracker import refuse_unknown
from nslora.tools.agents.running import try_agent
from nslora.tools.editor.call_log import RecordedCall
from nslora.tools.errors import EditorCallError, ModelError, RunError, SettingsError
from nslora.tools.files import quoted, write_json
from nslora.tools.inference.weights import EMBEDDED_HUB_ID, EMBEDDED_NAME, Notify, refuse_unreachable, resolve_model
from nslora.tools.policies.local import fitted
from nslora.tools.policies.opening import refuse_unusable_engine
from nslora.tools.policy import Policy, ReplyEngine, TrainingEngine
from nslora.tools.router.strategies import strategy_named
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.record import FORMAT, RUN_FILE, read_run_file
from nslora.tools.workspace.settings import RunSettings
from nslora.tools.workspace.workspace import Workspace

DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?")
POLICY = [
    name
    for protocol in (Policy, ReplyEngine, TrainingEngine)
    for name in (*protocol.__annotations__, *vars(protocol))
    if not name.startswith("_")
]
SECRET = ("editor_base_url", "engine.replies")  # addresses, in which a password may have come
FREE_SPACE_BYTES = 200e6  # adapters, checkpoints and replies of an ordinary run take less


def write_record(
    workspace: Workspace,
    *,
    editor_is_object: bool,
    graph_is_object: bool = False,
    checkpoints: str | None = None,
    origin: dict[str, Any] | None = None,
    adapter: str | None = None,
) -> None:
    """Write `run.json`, the last thing before a run exists. Raises RunError if another process was faster.

    checkpoints: URL of a database (its password is left out), `OBJECT`, None for a file in the folder. origin: of a
    fork or a replay, {"run", "kind", "round", ...}. adapter: hash of the adapter that the run starts from.
    """
    task = workspace.task
    with sole_writer(workspace.folder):
        if (workspace.folder / RUN_FILE).exists():
            raise RunError(f"{workspace.folder} was begun by another process just now: name another folder.")
        write_json(
            workspace.folder / RUN_FILE,
            {
                "format": FORMAT,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                # Of its own in any database: two runs must never share a thread.
                "thread": f"nslora-{task.name}-{uuid.uuid4().hex[:12]}",
                "settings": workspace.settings.model_dump(mode="json"),
                "editor_is_object": editor_is_object,
                **({"graph_is_object": True} if graph_is_object else {}),
                **({"adapter": adapter} if adapter else {}),
                "task": {
                    "name": task.name,
                    "source": task.source,
                    "options": dict(task.options),
                    "hash": task.hash,
                    "prompt": task.prompt.hash,
                    **({"checks": later} if (later := _later_revisions(task)) else {}),
                },
                "anchor": workspace.regression_hash,
                "checkpoints": without_password(checkpoints) if checkpoints else None,
                "origin": origin,
            },
        )


def _later_revisions(task: Task) -> dict[str, int]:
    return {name: revision for name, revision in task.reward.revisions.items() if revision > 1}


def read_settings(**values: Any) -> RunSettings:
    """RunSettings, with a readable SettingsError if a value is unknown or out of range."""
    try:
        return RunSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        known = f"; known: {', '.join(_fields_at(first['loc'][:-1]))}" if unknown else ""
        came = "" if place in SECRET else f" (came: {first['input']!r})"
        raise SettingsError(f"Setting {place}: {first['msg']}{came}{known}.") from None


def refuse_no_task(task: object) -> None:
    """Raise SettingsError if `task` is not a Task."""
    if not isinstance(task, Task):
        came = repr(task) if isinstance(task, str | Path) else type(task).__name__
        raise SettingsError(
            f"task={came} is no Task: give load_task(...) of an embedded task, a folder or a "
            "task.yaml, or task_from_rows(...)."
        )


def refuse_no_graph(graph: object) -> None:
    """Raise SettingsError if a graph is neither a StateGraph nor a compiled one, or caches nodes with effects."""
    if graph is None:
        return
    if not isinstance(graph, StateGraph | CompiledStateGraph):
        raise SettingsError(
            f"graph={type(graph).__name__} is no graph: give build_workflow() with your changes, or a compiled one."
        )
    refuse_cached(graph)


def refuse_no_policy(model: object) -> None:
    """Raise SettingsError if an object given as the model lacks a method of Policy."""
    # A property is not asked: it may load weights.
    lacking = [
        name for name in POLICY if inspect.getattr_static(model, name, None) is None and not hasattr(model, name)
    ]
    if lacking or isinstance(model, type):
        came = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        lacks = f" (it lacks {', '.join(lacking)})" if lacking else ""
        raise SettingsError(
            f"model={came} is no Policy{lacks}: give an embedded name, a folder, a hub id, or an "
            "object with the methods of nslora.tools.policy.Policy."
        )


def _fields_at(place: Sequence[int | str]) -> list[str]:
    """The known settings of a group; all groups if `place` is empty."""
    fields = RunSettings.model_fields
    for part in place:
        group = fields[str(part)].annotation if str(part) in fields else None
        fields = getattr(group, "model_fields", fields)
    return list(fields)


def could_begin(workspace: Workspace, *, ask_reward: bool = True, judges: bool = True) -> None:
    """Raise what Run.create would raise of strategy, reward, editor and model; writes nothing.

    ask_reward: about one row of each split. judges: whether they will be needed.
    """
    _refuse_unnameable(workspace.folder)
    strategy_named(workspace.settings.strategy)
    refuse_unknown(workspace.settings.track)
    device = workspace.settings.device.device
    if device is not None and not DEVICE.fullmatch(device):
        raise SettingsError(
            f"device.device is {device!r}: wanted cpu, cuda, mps or another kind that torch knows, or "
            "nothing for what this machine has."
        )
    refuse_unusable_engine(workspace.settings.engine, workspace.settings.lora)
    if judges:
        workspace.seat_judges(begun=False)
        for check in workspace.task.reward.judges:
            check.connect()
    if ask_reward:
        probe(workspace.task)
    try_agent(workspace.task, workspace.task.prompt)
    _ = workspace.editor  # connects, and checks prices if there is a cap on cost
    if workspace.given_policy is None and workspace.settings.model not in (EMBEDDED_NAME, EMBEDDED_HUB_ID):
        resolve_model(workspace.settings.model)


def ask_editor(workspace: Workspace) -> RecordedCall | None:
    """Ask the editor for one token, see `EditorCalls.check`. Raises ModelError if the call fails."""
    if workspace.settings.editor.startswith("gguf:"):  # its server takes memory, and starts with the first edit
        return None
    try:
        return workspace.editor.check()
    except EditorCallError as error:
        raise ModelError(str(error)) from error


def fitted_settings(settings: RunSettings, notify: Notify = lambda _: None) -> RunSettings:
    """The settings with LoRA's rank and place as the start adapter has them, if there is one. Reads no weights.

    Raises ModelError if the model or the adapter cannot be found, loaded or used as these settings want.
    """
    source = resolve_model(settings.model, notify)
    refuse_unreachable(source)
    adapter = Path(settings.adapter) if settings.adapter else None
    lora = fitted(source, settings.lora, thinking=settings.thinking, adapter=adapter, notify=notify)
    return settings.model_copy(update={"lora": lora})


def probe(task: Task) -> None:
    """Ask the reward about one row of each split, before anything is written. Raises RewardError."""
    for split in (task.train, task.validation, task.test):
        task.reward(split[0], split[0].reference or "")


def refuse_unusable(folder: Path, *, overwrite: bool = False) -> None:
    """Raise RunError if `folder` cannot take a new run. overwrite: an earlier run in it will be deleted."""
    _refuse_unnameable(folder)
    occupied = taken(folder)
    if overwrite and folder.is_symlink():
        raise RunError(f"{folder} is a link: to overwrite a run, name its folder itself, {folder.resolve()}.")
    if overwrite and occupied:
        try:
            read_run_file(folder)
        except RunError as error:
            raise RunError(
                f"{folder} exists and is not the folder of a run, so it is not overwritten: name another folder."
            ) from error
    elif occupied:
        raise RunError(
            f"{folder} exists already: name another folder, continue it with nslora resume "
            f"{quoted(folder)}, or replace it (overwrite=True, nslora run --overwrite)."
        )
    parent = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(parent).free
    if free < FREE_SPACE_BYTES:
        raise RunError(
            f"Only {free / 1e6:.0f} MB are free in {parent}, a run needs {FREE_SPACE_BYTES / 1e6:.0f} MB: "
            "make room, or name a folder elsewhere."
        )


def taken(folder: Path) -> bool:
    """Whether something stands there that a new run would have to make room for."""
    return folder.exists() and (not folder.is_dir() or any(not begun(path) for path in folder.iterdir()))


def delete_earlier(folder: Path) -> None:
    """Delete the run in `folder`, if there is one. Raises RunError while a process is at work on it."""
    if taken(folder):
        with sole_writer(folder):
            shutil.rmtree(folder)


def _refuse_unnameable(folder: Path) -> None:
    """Raise RunError if the file system cannot take this name."""
    try:
        for each in (folder, *map(Path, folder.parts)):  # below a folder that is missing, a part alone tells
            each.exists()
    except OSError as error:
        raise RunError(f"The folder {folder} cannot be made ({error.strerror}): name another one.") from error


def begun(path: Path) -> bool:
    """Whether a file was left by a run that was killed before it began."""
    half_written = path.name.startswith((f".{RUN_FILE}.", f".{HOLDER_FILE}.")) and path.suffix == ".partial"
    return half_written or path.name in (LOCK_FILE, HOLDER_FILE)


def make_folder(folder: Path) -> None:
    """Create the folder of a new run. Raises RunError if that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {folder} cannot be made ({error.strerror}): name another one.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"Nothing can be written to {folder}: name another one, or change its rights.")


def beside(folder: Path, name: str) -> Path:
    """The first free name beside a run's folder."""
    return unused(folder.resolve().parent / f"{folder.resolve().name}-{name}")


def unused(path: Path) -> Path:
    """The path, with a number if it exists already."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
