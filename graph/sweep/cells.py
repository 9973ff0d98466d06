"""The cells of a sweep: every combination of what a YAML file lists, or a list of cells, read and checked at once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from nslora.graph.runs.folder import could_begin, read_settings
from nslora.graph.runs.fork import merged
from nslora.tools.errors import NsloraError, SettingsError
from nslora.tools.files import sha256_of_json
from nslora.tools.inference.weights import EMBEDDED_NAME
from nslora.tools.schema import Settings
from nslora.tools.tasks.task import Task, load_task
from nslora.tools.workspace.workspace import Workspace

TaskSource = str | dict[str, Any]
AXES = ("model", "editor", "strategy", "seed")
SLUG_CHARACTERS = 40


class Grid(Settings):
    """A sweep's file: all combinations of its lists.

    tasks: names or paths, or {"task": ..., "style": ...} with further arguments of `load_task`. seeds: a list, or how
    many. settings: of every run. variants: further settings by name, each an alternative.
    """

    tasks: list[TaskSource] = Field(min_length=1)
    models: list[str] = Field([EMBEDDED_NAME], min_length=1)
    editors: list[str] = Field(["rules"], min_length=1)
    strategies: list[str] = Field(["neurosymbolic"], min_length=1)
    seeds: int | list[int] = 1
    settings: dict[str, Any] = Field({})
    variants: dict[str, dict[str, Any]] = Field({"": {}}, min_length=1)

    @field_validator("settings", "variants")
    @classmethod
    def _without_axes(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for settings in values.values() if info.field_name == "variants" else (values,):
            for name in sorted({"task", "variant", *AXES} & settings.keys()):
                raise ValueError(f"{name} is given in a list of its own: tasks, models, editors, strategies or seeds")
        return values

    def cells(self) -> list[dict[str, Any]]:
        """The combinations, seed by seed: a sweep that is stopped is complete for its first seeds."""
        seeds = range(self.seeds) if isinstance(self.seeds, int) else self.seeds
        axes = seeds, self.tasks, self.models, self.editors, self.variants, self.strategies
        return [
            {
                "task": task,
                "model": model,
                "editor": editor,
                "strategy": strategy,
                "seed": seed,
                "variant": variant,
                **merged(self.settings, self.variants[variant]),
            }
            for seed, task, model, editor, variant, strategy in product(*axes)
        ]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. source, options: of `load_task`. variant: the name of its settings.

    key: of all that decides how the run goes, the task's content included.
    """

    task: str
    source: str
    options: Mapping[str, Any]
    model: str
    editor: str
    strategy: str
    seed: int
    variant: str
    settings: Mapping[str, Any]
    key: str

    @property
    def name(self) -> str:
        """For people."""
        parts = [self.task, *self.options.values(), self.model, self.editor, self.variant, self.strategy]
        return ", ".join([*(str(each) for each in parts if each), f"seed {self.seed}"])

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        words = [self.task, *map(str, self.options.values()), self.variant, self.strategy]
        slug = re.sub(r"[^\w.]+", "-", "-".join(each for each in words if each)).strip("-.")[:SLUG_CHARACTERS]
        return f"{slug}-seed{self.seed}-{self.key[:8]}"

    @property
    def shared(self) -> str:
        """Cells of the same value may have training jobs in common."""
        return f"{self.source} {sorted(self.options.items())} {self.model} {self.editor} {self.seed}"


def read_grid(path: Path) -> list[dict[str, Any]]:
    """The cells of a sweep's file. Raises SettingsError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"The sweep {path} cannot be read ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict):
        raise SettingsError(f"The sweep {path} holds no mapping: wanted the lists {', '.join(Grid.model_fields)}.")
    return grid_cells(values, str(path))


def grid_cells(values: Mapping[str, Any], where: str = "The sweep") -> list[dict[str, Any]]:
    """The cells of a grid. where: for the message of a SettingsError."""
    try:
        return Grid(**values).cells()
    except ValidationError as error:
        first = error.errors()[0]
        known = f"; known: {', '.join(Grid.model_fields)}" if first["type"] == "extra_forbidden" else ""
        place = ".".join(map(str, first["loc"]))
        raise SettingsError(f"{where}: {place}: {first['msg']} (came: {first['input']!r}){known}.") from None


def checked_cells(given: Sequence[Mapping[str, Any]], folder: Path) -> list[Cell]:
    """The cells, each once, after every check that can be made before something is written or spent.

    Raises:
        SettingsError: A cell is no mapping, lacks its task, or has a setting that is unknown or out of range.
        NsloraError: What `Run.create` would raise of the cell. The message names the cell.
    """
    tasks: dict[str, Task] = {}
    begun: set[str] = set()  # what has been checked, for all seeds
    found: dict[str, Cell] = {}
    for number, values in enumerate(given, 1):
        if not isinstance(values, Mapping) or "task" not in values:
            raise SettingsError(f"Cell {number} of the sweep is {values!r}: wanted a mapping with 'task'.")
        try:
            cell, task = _cell(values, tasks)
            settings = read_settings(**run_settings(cell))
            if (told := f"{task.hash} {settings.model_dump(exclude={'seed'})}") not in begun:
                begun.add(told)
                could_begin(Workspace(folder / "runs" / cell.folder, settings, task), ask_reward=not task.reward.costly)
        except NsloraError as error:
            raise type(error)(f"Cell {number} of the sweep ({values['task']}): {error}") from error
        found.setdefault(cell.key, cell)
    return list(found.values())


def run_settings(cell: Cell) -> dict[str, Any]:
    """The cell as settings of a run."""
    return {**cell.settings, **{name: getattr(cell, name) for name in AXES}}


def _cell(values: Mapping[str, Any], tasks: dict[str, Task]) -> tuple[Cell, Task]:
    rest = dict(values)
    source = rest.pop("task")
    options = dict(source) if isinstance(source, Mapping) else {"task": source}
    name = options.pop("task", None)
    if not isinstance(name, str | Path):
        raise SettingsError(f"task={source!r}: wanted a name, a path, or a mapping with 'task' and its options.")
    wanted = sha256_of_json([str(name), options])
    if wanted not in tasks:
        tasks[wanted] = load_task(name, **options)
    task, variant = tasks[wanted], rest.pop("variant", "")
    axes: dict[str, Any] = {"model": EMBEDDED_NAME, "editor": "rules", "strategy": "neurosymbolic", "seed": 0}
    axes = {each: rest.pop(each, default) for each, default in axes.items()}
    key = sha256_of_json({"task": task.hash, "prompt": task.prompt.hash, **axes, "settings": rest})
    return Cell(task.name, task.source, options, **axes, variant=variant, settings=rest, key=key), task
