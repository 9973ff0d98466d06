"""The fields of a task.yaml. Errors name the file, the line and the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from nslora.tools.errors import RewardError, TaskError
from nslora.tools.rewards.checks import Check
from nslora.tools.rewards.reward import Combine, Reward, build_check, first_problem
from nslora.tools.schema import Settings
from nslora.tools.tasks.agent import AgentSpec, agent_spec
from nslora.tools.tasks.readers import readable

SPLITS = ("train", "validation", "test")
MAX_NEW_TOKENS = 48


class SplitSources(Settings):
    """The source of each split: a file relative to task.yaml, or a split of a dataset. None: a share of train."""

    train: str
    validation: str | None = None
    test: str | None = None


class SplitShares(Settings):
    """Shares of the train questions that become the splits without their own source.

    A share that is not stated is 0.2, and at most 500 validation and 1,000 test questions. stratify: each reference has
    the same share of each split, for tasks whose references are labels. near_duplicates: whether questions that are
    nearly alike stay in one split.
    """

    validation: float = Field(0.2, gt=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)
    seed: int = 0
    stratify: bool = False
    near_duplicates: Literal["together", "apart"] = "together"


class RowCaps(Settings):
    """Most rows of each split; more are a sample, drawn with `seed`. None: all."""

    train: int | None = Field(None, ge=1, strict=True)
    validation: int | None = Field(None, ge=1, strict=True)
    test: int | None = Field(None, ge=1, strict=True)
    seed: int = 0


class Dataset(Settings):
    """A Hugging Face dataset, as `datasets.load_dataset(path, name, split=..., revision=...)` takes it."""

    path: str
    name: str | None = None
    revision: str | None = None
    splits: SplitSources = SplitSources(train="train")


class Fields(Settings):
    """The column of each field, or a path into it such as `answers.text`.

    Attributes:
        question: Column of the question.
        reference: Column of the reference: a text, or a list of right answers. None: the task has no references.
        id: Column of the ids. None: the column `id`, if it exists. False: rows are numbered.
    """

    question: str = "question"
    reference: str | None = "reference"
    id: str | Literal[False] | None = None


class RewardSpec(Settings):
    """The reward of a task.

    Attributes:
        combine: "mean" or "all"; see `Reward`.
        costly: True if an evaluation costs money. The classifier then uses reward heads (Bradley-Terry). None: if a
            check is a judge.
        noise: Largest difference between two scores of one reply. None: measured, on a few replies judged twice.
        checks: Checks by name or with options; `build_check` reads each.
    """

    combine: Combine = "mean"
    costly: bool | None = None
    noise: float | None = Field(None, ge=0, le=0.3)
    checks: tuple[str | dict[str, Any], ...] = Field(("exact_match",), min_length=1)


class TaskSpec(Settings):
    """A whole task.yaml. `prompt` is a prompt document, or the path of a document that ends in .md.

    `goal` says in the user's words what the replies are for; an editor of prompts reads it. `agent` is the function
    that makes the task's agent, or an `AgentSpec`; None for a task of one call.
    """

    name: str = Field(pattern=r"\S")
    goal: str | None = Field(None, pattern=r"\S")
    data: SplitSources | None = None
    dataset: Dataset | None = None
    split: SplitShares | None = None
    rows: RowCaps = RowCaps()
    duplicates: Literal["refuse", "drop", "merge"] = "refuse"
    fields: Fields = Fields()
    prompt: str | None = None
    agent: AgentSpec | None = None
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1, strict=True)
    reward: RewardSpec = RewardSpec()
    styles: dict[str, tuple[str | dict[str, Any], ...]] = Field(default_factory=dict)
    style: str | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _one_file(cls, data: Any) -> Any:
        return {"train": data} if isinstance(data, str) else data

    @field_validator("agent", mode="before")
    @classmethod
    def _function_alone(cls, agent: Any) -> Any:
        return agent_spec(agent)

    @field_validator("reward", mode="before")
    @classmethod
    def _checks_alone(cls, reward: Any) -> Any:
        return {"checks": reward} if isinstance(reward, list | tuple) else reward

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        if (self.data is None) == (self.dataset is None):
            raise ValueError("give either `data` (files) or `dataset` (a Hugging Face dataset)")
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
        """The files or the dataset splits of this task."""
        return self.data or (self.dataset or Dataset(path="")).splits

    def checks(self, style: str | None) -> list[tuple[tuple[Any, ...], Any]]:
        """List the checks of the task and of one style, each with its keys in the document."""
        checks: list[tuple[tuple[Any, ...], Any]] = [
            (("reward", "checks", index), check) for index, check in enumerate(self.reward.checks)
        ]
        in_style = () if style is None else self.styles[style]
        return checks + [(("styles", style, index), check) for index, check in enumerate(in_style)]


@dataclass(frozen=True)
class Document:
    """The content of a task.yaml, not yet validated.

    Attributes:
        path: The task.yaml, or the folder if the folder has none.
        folder: The folder that paths in the document are relative to.
        content: The parsed mapping.
        tree: YAML nodes, for line numbers.
    """

    path: Path
    folder: Path
    content: Mapping[str, Any]
    tree: yaml.Node | None = None

    def place(self, keys: Sequence[Any]) -> str:
        """Give `task.yaml:12`: the file, with the line of the innermost of `keys` that has one."""
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
    """Parse a task.yaml, without validation.

    Raises:
        TaskError: If the file cannot be read, is not YAML, repeats a key or is not a mapping.
    """
    try:
        with readable(path):
            text = path.read_text(encoding="utf-8-sig")
        content, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise TaskError(f"{path}{line}: invalid YAML ({problem}).") from error
    if twice := _key_twice(tree):
        raise TaskError(f"{path}:{twice.start_mark.line + 1}: the key {twice.value!r} comes twice; keep one.")
    if not isinstance(content, dict):
        raise TaskError(f"{path}: got {type(content).__name__}; write a mapping with name, data and reward.")
    return Document(path, path.parent, content, tree)


def _key_twice(tree: yaml.Node | None) -> yaml.ScalarNode | None:
    """Find the first repeated key of a mapping, because PyYAML silently keeps the last value."""
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
    """Validate a document, after `overrides` replaced its top-level fields.

    Raises:
        TaskError: If a field is missing, unknown or wrong. The message names line and field.
    """
    content = {**document.content, **overrides}
    content.setdefault("name", document.folder.resolve().name)
    try:
        return TaskSpec.model_validate(content)
    except ValidationError as error:
        keys = error.errors()[0]["loc"]
        place = "load_task" if keys and keys[0] in overrides else document.place(keys)
        raise TaskError(f"{place}: {first_problem(error, TaskSpec)}.") from error


def reward_of(spec: TaskSpec, document: Document, style: str | None, combine: str | None) -> Reward:
    """Build the reward of a task in one of its styles.

    Raises:
        TaskError: If the style is unknown.
        RewardError: If a check or `combine` is wrong. The message names file and line.
    """
    style = style if style is not None else spec.style
    if style is not None and style not in spec.styles:
        known = ", ".join(spec.styles) or "none"
        raise TaskError(f"{document.place(['styles'])}: unknown style {style!r} (known: {known}).")
    keys: tuple[Any, ...] = ("reward",)
    checks: list[Check] = []
    try:
        for check_keys, check in spec.checks(style):
            keys = check_keys
            checks.append(build_check(check, document.folder))
        keys = ("reward",)
        return Reward(checks, combine or spec.reward.combine, costly=spec.reward.costly, noise=spec.reward.noise)
    except RewardError as error:
        raise RewardError(f"{document.place(keys)}: {error}") from error
