"""What a task.yaml may say: its fields, and messages that name file, line and field where it says something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from nslora.tools.errors import RewardError, TaskError
from nslora.tools.rewards.reward import Combine, Reward, build_check, first_problem
from nslora.tools.schema import Settings

SPLITS = ("train", "validation", "test")
MAX_NEW_TOKENS = 48


class SplitSources(Settings):
    """Where each split comes from: a file relative to task.yaml, or a split of a data set. None: cut from train."""

    train: str
    validation: str | None = None
    test: str | None = None


class SplitShares(Settings):
    """Shares of the train questions that become the splits without a source of their own."""

    validation: float = Field(0.2, gt=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)
    seed: int = 0


class Dataset(Settings):
    """A Hugging Face dataset, as `datasets.load_dataset(path, name, split=..., revision=...)` takes it."""

    path: str
    name: str | None = None
    revision: str | None = None
    splits: SplitSources = SplitSources(train="train")


class Fields(Settings):
    """Which columns hold what. reference None: the task has none. id None: the column `id`, where there is one."""

    question: str = "question"
    reference: str | None = "reference"
    id: str | None = None


class RewardSpec(Settings):
    """Checks by name or with options; each is read by `rewards.build_check`.

    costly: an evaluation costs money; the classifier then uses reward heads. noise: the largest change of mind about
    one reply; where it is not given, a few replies are judged twice.
    """

    combine: Literal["mean", "all"] = "mean"
    costly: bool = False
    noise: float | None = Field(None, ge=0, le=0.3)
    checks: tuple[str | dict[str, Any], ...] = Field(("exact_match",), min_length=1)


class TaskSpec(Settings):
    """A whole task.yaml. `prompt` is a document or the path of one that ends in .md."""

    name: str = Field(min_length=1)
    data: SplitSources | None = None
    dataset: Dataset | None = None
    split: SplitShares | None = None
    fields: Fields = Fields()
    prompt: str | None = None
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1)
    reward: RewardSpec = RewardSpec()
    styles: dict[str, tuple[str | dict[str, Any], ...]] = Field(default_factory=dict)
    style: str | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _one_file(cls, data: Any) -> Any:
        return {"train": data} if isinstance(data, str) else data

    @field_validator("reward", mode="before")
    @classmethod
    def _checks_alone(cls, reward: Any) -> Any:
        return {"checks": reward} if isinstance(reward, list | tuple) else reward

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        if (self.data is None) == (self.dataset is None):
            raise ValueError("a task needs either `data` (files) or `dataset` (a Hugging Face dataset)")
        missing = [split for split in SPLITS if getattr(self.sources, split) is None]
        if missing and self.split is None:
            raise ValueError(f"no source for {' and '.join(missing)}: name it, or write `split: {{}}` to cut train")
        if self.split is not None and not missing:
            raise ValueError("`split` has nothing to cut: every split has a source of its own")
        if sum(getattr(self.split, split) for split in missing) >= 1:
            raise ValueError("the shares under `split` leave nothing for train")
        return self

    @property
    def sources(self) -> SplitSources:
        """Files or dataset splits, whichever this task has."""
        return self.data or (self.dataset or Dataset(path="")).splits

    def checks(self, style: str | None) -> list[tuple[tuple[Any, ...], Any]]:
        """The checks in one style, each with its keys in the document."""
        checks: list[tuple[tuple[Any, ...], Any]] = [
            (("reward", "checks", index), check) for index, check in enumerate(self.reward.checks)
        ]
        if style is not None:
            checks += [(("styles", style, index), check) for index, check in enumerate(self.styles[style])]
        return checks


@dataclass(frozen=True)
class Document:
    """A task's document: where it stands, what it says, and on which line."""

    path: Path  # of task.yaml, or of the folder that has none
    folder: Path  # that paths are relative to
    content: Mapping[str, Any]
    tree: yaml.Node | None  # for line numbers

    def place(self, keys: Sequence[Any]) -> str:
        """`task.yaml:12` for the nearest line that is known for the keys."""
        node, line = self.tree, None
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if pair[0].value == str(key)), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line + 1
        return str(self.path) if line is None else f"{self.path}:{line}"


def read_document(path: Path) -> Document:
    """A task.yaml, unchecked. Raises TaskError with file and line where it is no YAML mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise TaskError(f"{path}{line}: no valid YAML ({problem}).") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: no UTF-8 text at byte {error.start}; save the file as UTF-8.") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if twice := _key_twice(tree):
        raise TaskError(f"{path}:{twice.start_mark.line + 1}: the key {twice.value!r} comes twice; keep one.")
    if not isinstance(content, dict):
        raise TaskError(f"{path}: a mapping with name, data and reward is wanted, not {type(content).__name__}.")
    return Document(path, path.parent, content, tree)


def _key_twice(tree: yaml.Node | None) -> yaml.ScalarNode | None:
    """The first key that a mapping of the document has already; YAML itself takes the last one without a word."""
    if isinstance(tree, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in tree.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    return key
                seen.add(key.value)
            if found := _key_twice(value):
                return found
    if isinstance(tree, yaml.SequenceNode):
        return next((found for each in tree.value if (found := _key_twice(each))), None)
    return None


def validated(document: Document, overrides: Mapping[str, Any]) -> TaskSpec:
    """The spec of a document, after overrides of its top-level fields. Raises TaskError with line and field."""
    content = {**document.content, **overrides}
    content.setdefault("name", document.folder.resolve().name)
    try:
        return TaskSpec.model_validate(content)
    except ValidationError as error:
        keys = error.errors()[0]["loc"]
        place = "load_task" if keys and keys[0] in overrides else document.place(keys)
        raise TaskError(f"{place}: {first_problem(error, TaskSpec)}.") from error


def reward_of(spec: TaskSpec, document: Document, style: str | None, combine: str | None) -> Reward:
    """The reward of a spec in one of its styles. Raises TaskError for an unknown style, RewardError for a check."""
    style = style if style is not None else spec.style
    if style is not None and style not in spec.styles:
        known = ", ".join(spec.styles) or "none"
        raise TaskError(f"{document.place(['styles'])}: unknown style {style!r} (known: {known}).")
    checks = []
    for keys, check in spec.checks(style):
        try:
            checks.append(build_check(check, document.folder))
        except RewardError as error:
            raise RewardError(f"{document.place(keys)}: {error}") from error
    try:
        kind = cast("Combine", combine or spec.reward.combine)
        return Reward(checks, kind, costly=spec.reward.costly, noise=spec.reward.noise)
    except RewardError as error:
        raise RewardError(f"{document.place(['reward'])}: {error}") from error
