"""A run: one folder, one thread of checkpoints, from first state to result."""

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from pydantic import ValidationError

from nslora.graph.adapt import build_graph
from nslora.graph.state import AdaptationContext, AdaptationState, first_state
from nslora.tools.chat_models import connect_editor, editor_name
from nslora.tools.checkpoints import sqlite_checkpoints
from nslora.tools.errors import RunError, SettingsError
from nslora.tools.files import write_json
from nslora.tools.lab import RUN_FILE, Lab, open_lab, read_run_file, register
from nslora.tools.models import Note, resolve_model
from nslora.tools.policy import Policy
from nslora.tools.settings import RunSettings
from nslora.tools.strategy import strategy_named
from nslora.tools.task import Task

THREAD = "adaptation"           # one run, one thread, one checkpoint file
STEPS_PER_ROUND = 4             # evaluate, monitor, classify, update
FREE_SPACE_BYTES = 200e6        # adapters, checkpoints and replies of an ordinary run take less


class Run:
    """One adaptation: its folder, its lab, and its checkpoints."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        self.folder, self.lab = folder, lab

    @classmethod
    def create(cls, folder: str | Path, *, task: Task, model: str | Policy = "SmolLM2-135M-Instruct",
               editor: str | BaseChatModel = "rules", note: Note = lambda _: None, **settings: Any) -> "Run":
        """Begin a run in a new folder.

        model: embedded, folder, hub id, or an object that is a Policy. editor: a name such as "openai:gpt-4o", or a
        LangChain chat model. settings: fields of RunSettings (seed=1, max_rounds=4, lora={"rank": 16}, ...).
        Everything is checked first: after an error nothing is written.
        """
        path = Path(folder)
        values = read_settings(model=model if isinstance(model, str) else model.name,
                               editor=editor if isinstance(editor, str) else editor_name(editor), **settings)
        strategy_named(values.strategy)
        chat = connect_editor(editor, base_url=values.editor_base_url)
        if isinstance(model, str):
            resolve_model(model, note)
        refuse_unusable(path)
        path.mkdir(parents=True)
        lab = Lab(path.resolve(), values, task, policy=None if isinstance(model, str) else model, editor_chat=chat,
                  note=note)
        write_json(path / RUN_FILE, {
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "settings": values.model_dump(mode="json"),
            "editor_is_object": not isinstance(editor, str),
            "task": {"name": task.name, "source": task.source, "options": dict(task.options), "hash": task.hash}})
        return cls(path, register(lab))

    @classmethod
    def open(cls, folder: str | Path, *, task: Task | None = None, editor: BaseChatModel | None = None,
             model: Policy | None = None, note: Note = lambda _: None) -> "Run":
        """A run that exists. task, editor, model: only where the run was created with Python objects."""
        path = Path(folder)
        record = read_run_file(path)
        if task is None and editor is None and model is None:
            return cls(path, open_lab(path))
        if task is None:
            raise RunError("Give the task too: Run.open(folder, task=..., editor=...).")
        if task.hash != record["task"]["hash"]:
            raise RunError(f"Another task than the one that {folder} was begun with (hash {task.hash[:12]}, wanted "
                           f"{record['task']['hash'][:12]}).")
        lab = Lab(path.resolve(), RunSettings(**record["settings"]), task, policy=model, editor_chat=editor, note=note)
        return cls(path, register(lab))

    @property
    def config(self) -> RunnableConfig:
        """LangGraph's config of this run."""
        limit = STEPS_PER_ROUND * (self.lab.settings.max_rounds + 2)
        return {"configurable": {"thread_id": THREAD}, "recursion_limit": limit}

    @property
    def context(self) -> AdaptationContext:
        """What the nodes are given beside the state; pass it with every invoke."""
        return AdaptationContext(folder=str(self.folder.resolve()))

    def first_state(self) -> AdaptationState:
        """The state to begin with: the base model under the task's prompt."""
        return first_state(self.lab.prompts.add(self.lab.task.prompt))

    def checkpointer(self) -> AbstractContextManager[BaseCheckpointSaver[Any]]:
        """The run's checkpoint file, open as long as the block lasts."""
        return sqlite_checkpoints(self.folder / "checkpoints.sqlite")

    def stream(self) -> Iterator[tuple[str, Any]]:
        """Run to the end, yielding ("updates", {node: changes}) and ("custom", progress) as they come.

        A run that was begun before goes on from its last checkpoint; a finished one yields nothing.
        """
        with self.checkpointer() as saver:
            graph = build_graph(saver)
            seen = graph.get_state(self.config).values
            if seen.get("status") == "finished":
                return
            for mode, part in graph.stream(None if seen else self.first_state(), self.config, context=self.context,
                                           stream_mode=["updates", "custom"], durability="sync"):
                yield str(mode), part

    def adapt(self) -> dict[str, Any]:
        """Run to the end and return the report."""
        for _ in self.stream():
            pass
        return self.report()

    def state(self) -> AdaptationState | None:
        """The newest state, None before the first checkpoint."""
        with self.checkpointer() as saver:
            values: Any = build_graph(saver).get_state(self.config).values
        return values or None

    def report(self) -> dict[str, Any]:
        """`result/report.json` as a dict. Raises RunError while the run has not finished."""
        path = self.folder / "result" / "report.json"
        if not path.is_file():
            raise RunError(f"The run {self.folder} has no result yet: let it finish (nslora resume {self.folder}).")
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report


def read_settings(**values: Any) -> RunSettings:
    """RunSettings, with a readable SettingsError where a value is unknown or out of range."""
    try:
        return RunSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        known = f"; known: {', '.join(RunSettings.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise SettingsError(f"Setting {place}: {first['msg']} (came: {first['input']!r}){known}.") from error


def refuse_unusable(folder: Path) -> None:
    """Raise RunError where a run cannot live in `folder`."""
    if folder.exists():
        raise RunError(f"{folder} exists already: name another folder, or continue it with nslora resume {folder}.")
    parent = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(parent).free
    if free < FREE_SPACE_BYTES:
        raise RunError(f"Only {free / 1e6:.0f} MB are free in {parent}, a run needs {FREE_SPACE_BYTES / 1e6:.0f} MB: "
                       "make room, or name a folder elsewhere.")
