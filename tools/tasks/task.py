"""A task: rows in three disjoint splits, a reward that scores replies, and the prompt that a run starts from.

`load_task("handbook")` loads an embedded task, `load_task(path)` a folder, a task.yaml or a file of rows, and
`task_from_rows` takes rows from Python.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from nslora.tools.errors import PromptError, TaskError
from nslora.tools.files import as_text, sha256_of_json
from nslora.tools.prompt import PLACEHOLDER, SYSTEM, TEMPLATE, Prompt, check_sections, parse
from nslora.tools.prompt_variables import check_system, variables
from nslora.tools.rewards.reward import Reward, build_reward
from nslora.tools.schema import Example
from nslora.tools.tasks.agent import Agent, agent_of
from nslora.tools.tasks.examples import RowReader, examples_of, prepared, refuse_one_question
from nslora.tools.tasks.near_duplicates import across, together
from nslora.tools.tasks.readers import SourceRow, from_python, read_dataset, read_rows, readable
from nslora.tools.tasks.spec import (
    MAX_NEW_TOKENS,
    SPLITS,
    Document,
    Fields,
    TaskSpec,
    read_document,
    reward_of,
    validated,
)
from nslora.tools.tasks.splits import (
    cut_notes,
    keys_of,
    label_note,
    merged,
    same_question,
    sampled,
    shares_of,
    size_notes,
    split_off,
    without_duplicates,
)

_HEADING = re.compile(r"^#\s", re.MULTILINE)
_FILES = {  # names of a split's file, as `datasets` finds them in a folder
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_EMBEDDED = Path(__file__).parent / "embedded"
_FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".tsv", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".json.gz")


@dataclass(frozen=True)
class Task:
    """Rows, reward and start prompt of a run.

    Attributes:
        name: Shown in reports; not part of the hash.
        train: Rows that updates learn from.
        validation: Rows that decide whether a candidate is kept.
        test: Rows for the final measurement only.
        reward: Scores replies.
        prompt: The prompt that a run starts from.
        max_new_tokens: Longest reply, in tokens.
        hash: SHA-256 of rows, reward, max_new_tokens, start prompt and goal, 64 hex characters.
        source: First argument of `load_task`, so that another process can load the task; "" for rows from Python.
        options: Keyword arguments of `load_task`.
        columns: Columns of the train rows.
        reader: Reads further rows as those of the task: the regression set, logs of replies.
        notes: What was decided on loading, such as samples, and advice; not part of the hash.
        goal: What the replies are for, in the user's words; editors of prompts read it. "" if nobody said.
        agent: Makes the agent whose final answer is the reply; None for a task of one call.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    reward: Reward
    prompt: Prompt
    max_new_tokens: int
    hash: str
    source: str
    options: Mapping[str, Any]
    columns: tuple[str, ...] = ()
    reader: RowReader = field(default_factory=lambda: RowReader(Fields()))
    notes: tuple[str, ...] = ()
    goal: str = ""
    agent: Agent | None = None

    def hash_of(self, revisions: Mapping[str, int]) -> str:
        """The hash that the task has under these revisions of its checks, by name; 1 for one that is not named."""
        splits = {split: getattr(self, split) for split in SPLITS}
        reward = self.reward.spec_of(revisions)
        return _hash_of(splits, reward, self.max_new_tokens, self.prompt, self.goal, self.agent)


def load_task(source: str | Path, *, style: str | None = None, combine: str | None = None, **overrides: Any) -> Task:
    """Load a task. Nothing is written.

    Args:
        source: Name of an embedded task, or path of a folder, a task.yaml or a file of rows.
        style: One of the styles in task.yaml.
        combine: "mean" or "all"; replaces reward.combine.
        **overrides: Replace top-level fields of task.yaml.

    Raises:
        TaskError: If the task cannot be read. The message names file, line and field.
        RewardError: If a check is unknown or rejects its options.
    """
    document = _document(source, overrides)
    spec = validated(document, overrides)
    options = {"style": style, "combine": combine, **overrides}
    return _task(
        spec,
        _rows(spec, document),
        reward_of(spec, document, style, combine),
        document,
        source=str(source) if str(source) in embedded_tasks() else str(Path(source).absolute()),
        options={name: value for name, value in options.items() if value is not None},
    )


def task_from_rows(
    *,
    train: Iterable[Any],
    validation: Iterable[Any],
    test: Iterable[Any],
    reward: Sequence[Any] | Callable[..., Any] = ("exact_match",),
    name: str = "rows",
    combine: str = "mean",
    prompt: Prompt | str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    fields: Mapping[str, str | bool | None] | None = None,
    rows: Mapping[str, int] | None = None,
    duplicates: str = "refuse",
    goal: str | None = None,
    agent: Callable[..., Any] | Mapping[str, Any] | str | None = None,
) -> Task:
    """Make a task from rows in memory.

    Args:
        train: Rows that updates learn from: mappings of columns, or a pandas DataFrame.
        validation: Rows that decide whether a candidate is kept.
        test: Rows for the final measurement.
        reward: Check specs, or a callable of (question, reference, reply), or with the signature of another framework
            (`rewards.signatures.KNOWN`). It returns a number in [0, 1], a pair (number, feedback) or a Score.
        name: Shown in reports.
        combine: "mean" or "all"; see `Reward`.
        prompt: The start prompt, its document, or the path of a document that ends in .md.
        max_new_tokens: Longest reply, in tokens.
        fields: Column names for "question", "reference" and "id".
        rows: Most rows of a split, such as {"validation": 200}; more are a sample, drawn with the seed rows["seed"].
        duplicates: "drop" drops rows that repeat within a split or in another one; "merge" makes the rows of a question
            one with all of their answers, and drops those of another split; "refuse" refuses the latter.
        goal: What the replies are for, in your words; editors of prompts read it.
        agent: Called with (chat model, prompts), returns a Runnable such as a compiled LangGraph graph; or the fields
            of `AgentSpec` in a mapping, with the function under "make".

    Raises:
        TaskError: If a row or an argument is wrong.
        RewardError: If a check is unknown or rejects its options.
    """
    content = {
        "name": name,
        "goal": goal,
        "data": dict.fromkeys(SPLITS, ""),  # TaskSpec asks for a source
        "fields": fields or {},
        "prompt": prompt.render() if isinstance(prompt, Prompt) else prompt,
        "max_new_tokens": max_new_tokens,
        "rows": rows or {},
        "duplicates": duplicates,
        "agent": agent,
    }
    document = Document(Path("task_from_rows"), Path(), content)
    spec = validated(document, {})
    found = {split: from_python(values, split) for split, values in zip(SPLITS, (train, validation, test), strict=True)}
    return _task(spec, found, build_reward(reward, combine=combine), document, source="", options={})


def embedded_tasks() -> tuple[str, ...]:
    """Names of the tasks in the package."""
    return tuple(sorted(path.parent.name for path in _EMBEDDED.glob("*/task.yaml")))


def any_keys(examples: Iterable[Example]) -> set[str]:
    """Union of the keys of all questions."""
    return set().union(*(keys_of(example.asked) for example in examples))


def _document(source: str | Path, overrides: Iterable[str]) -> Document:
    """Find and parse the task: a task.yaml, a folder with one or with a file for each split, or a file of rows."""
    path = _EMBEDDED / str(source) if str(source) in embedded_tasks() else Path(source)
    with readable(path):
        if path.is_dir():
            written = path / "task.yaml"
            document = read_document(written) if written.is_file() else Document(path, path.absolute(), {})
        elif path.suffix in (".yaml", ".yml") and path.is_file():
            document = read_document(path)
        elif path.is_file() and path.name.endswith(_FORMATS):
            content = {"name": path.name.partition(".")[0], "data": path.name, "split": {}}
            return Document(path, path.parent.absolute(), content)
        else:
            known = ", ".join(embedded_tasks())
            raise TaskError(
                f"No task {str(path)!r}: give a folder, a task.yaml, a file of rows such as rows.csv, or an embedded "
                f"task (known: {known})."
            )
        return document if {"data", "dataset"} & {*document.content, *overrides} else _with_files(document)


def _with_files(document: Document) -> Document:
    """Name the files of the splits that stand in the folder; a split without a file is a share of train."""
    paths = {
        split: f"{name}{suffix}"
        for split, names in _FILES.items()
        for suffix in reversed(_FORMATS)
        for name in reversed(names)
        if (document.folder / f"{name}{suffix}").is_file()
    }
    if "train" not in paths:
        raise TaskError(
            f"{document.path}: there is no file of train rows, train{_FORMATS[0]} (or {', '.join(_FORMATS[1:])}): add "
            "it, or name a file under `data`, or a Hugging Face data set under `dataset`, in task.yaml."
        )
    shares: dict[str, Any] = {} if len(paths) == len(SPLITS) else {"split": {}}
    return replace(document, content={**shares, **document.content, "data": paths})


def _rows(spec: TaskSpec, document: Document) -> dict[str, list[SourceRow]]:
    """Read the rows of every source."""

    def of(split: str, source: str) -> list[SourceRow]:
        if spec.dataset is None:
            rows = read_rows(document.folder / source)
        else:
            local = document.folder / spec.dataset.path
            path = str(local) if os.path.exists(local) else spec.dataset.path
            rows = read_dataset(path, spec.dataset.name, source, spec.dataset.revision)
        if not rows:
            raise TaskError(f"{document.folder / source if spec.data else source}: the split {split!r} has no rows.")
        return rows

    return {split: of(split, name) for split in SPLITS if (name := getattr(spec.sources, split)) is not None}


def _in_splits(
    spec: TaskSpec, rows: Mapping[str, Sequence[SourceRow]], reader: RowReader
) -> tuple[dict[str, list[SourceRow]], list[str]]:
    """Cut the splits without a source from train, drop duplicates, and draw samples. Returns rows and notes."""
    found = {split: list(values) for split, values in rows.items()}
    notes: list[str] = []

    def key(row: SourceRow) -> str:
        return same_question(reader.asked(row))

    def answered(row: SourceRow) -> str:
        return "\n".join(reader.answers(row)[:1])

    if spec.split is not None:
        shares, most = shares_of(spec.split, [split for split in SPLITS if split not in found])
        alike: dict[str, str] = {}
        keys = {row.number: key(row) for row in found["train"]}
        if spec.split.near_duplicates == "together":
            questions = list(dict.fromkeys(keys.values()))
            smallest = min(min(share * len(questions), most.get(split, inf)) for split, share in shares.items())
            alike, notes = together(questions, round(smallest))

        def asked(row: SourceRow) -> str:
            return alike.get(keys[row.number], keys[row.number])

        label_of = answered if spec.split.stratify else None
        found.update(split_off(found["train"], shares, spec.split.seed, asked, most, label_of))
        notes += filter(None, [None if label_of else label_note(found["train"], answered)])
        notes += cut_notes(found, most, shares)
    if spec.duplicates == "merge":
        found, more = merged(found, reader.asked, reader.answers)
        notes += more
    if spec.duplicates != "refuse":
        found, more = without_duplicates(found, reader.asked, answered)
        notes += more
    found, more = sampled(found, spec.rows)
    if spec.duplicates != "refuse":
        notes += across({split: map(key, values) for split, values in found.items()})
    return found, notes + more + size_notes(found)


def _task(
    spec: TaskSpec,
    sources: Mapping[str, Sequence[SourceRow]],
    reward: Reward,
    document: Document,
    *,
    source: str,
    options: Mapping[str, Any],
) -> Task:
    agent = agent_of(spec.agent, document.place(["agent"]), document.folder) if spec.agent else None
    found, reader, prompt, notes = prepared(
        sources, spec.fields, reward, lambda changed: _prompt(spec.prompt, document, changed, agent)
    )
    refuse_one_question(found, reader)
    rows, more = _in_splits(spec, found, reader)
    train = examples_of("train", rows["train"], reader, reward)
    reward = reward.fitted(train)
    held_out = {split: examples_of(split, rows[split], reader, reward) for split in SPLITS if split != "train"}
    splits = {"train": train, **held_out}
    columns = tuple(dict.fromkeys(str(name) for row in splits["train"] for name in row.fields))
    _check_system(prompt, columns, document)
    _check_ids(splits)
    _check_overlap(splits)
    goal = (spec.goal or "").strip()
    return Task(
        name=spec.name,
        **splits,
        reward=reward,
        prompt=prompt,
        max_new_tokens=spec.max_new_tokens,
        hash=_hash_of(splits, reward.spec, spec.max_new_tokens, prompt, goal, agent),
        source=source,
        options=dict(options),
        columns=columns,
        reader=reader,
        notes=tuple(notes + more),
        goal=goal,
        agent=agent,
    )


def _hash_of(
    splits: Mapping[str, Sequence[Example]],
    reward: Mapping[str, Any],
    max_new_tokens: int,
    prompt: Prompt,
    goal: str,
    agent: Agent | None,
) -> str:
    rows = {split: [_hashed(example) for example in splits[split]] for split in SPLITS}
    hashed = {"rows": rows, "reward": reward, "max_new_tokens": max_new_tokens}
    said = {**({"goal": goal} if goal else {}), **({"agent": agent.hashed} if agent else {})}
    return sha256_of_json({**json.loads(json.dumps(hashed, default=as_text)), "prompt": prompt.render(), **said})


def _hashed(example: Example) -> list[Any]:
    """What the task's hash holds of a row; several right answers and turns only if there are several."""
    several = [list(example.answers)] if example.answers else []
    turns = [{"history": example.history}] if example.history else []
    return [example.id, example.question, example.target, dict(example.fields), *several, *turns]


def _check_ids(splits: Mapping[str, Sequence[Example]]) -> None:
    """Raise TaskError if two rows share an id."""
    seen: dict[str, str] = {}
    for split, examples in splits.items():
        for example in examples:
            if example.id in seen:
                raise TaskError(
                    f"The id {example.id!r} repeats, in {seen[example.id]} and in {split}: give each row a unique id, "
                    "or write `id: false` under `fields` so that rows are numbered."
                )
            seen[example.id] = split


def _check_overlap(splits: Mapping[str, Sequence[Example]]) -> None:
    """Raise TaskError if a question is in two splits, whatever the references are."""
    for held_out, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        known = any_keys(splits[other])
        copies = [example for example in splits[held_out] if keys_of(example.asked) & known]
        if copies:
            raise TaskError(
                f"The splits overlap: {len(copies)} of the {len(splits[held_out])} {held_out} rows are in {other} too, "
                f"first {copies[0].id} {copies[0].asked[:80]!r}: remove them from one of the two, or write "
                "`duplicates: drop` in task.yaml."
            )


def _prompt(text: str | None, document: Document, changed: Callable[[str], str], agent: Agent | None) -> Prompt:
    """Parse a prompt document; one line that ends in .md is its path, a text without headings one of the two turns."""
    if text is None:
        return Prompt()
    where = document.path
    if "\n" not in text.strip() and text.strip().endswith(".md"):
        where = document.folder / text.strip()
        with readable(where):
            text = where.read_text(encoding="utf-8-sig")
    if not _HEADING.search(text):
        text = f"# {TEMPLATE if variables(text) else SYSTEM}\n\n{text}"
    try:
        prompt = parse(text, template=PLACEHOLDER, changed=changed)
        check_sections(prompt, read_by_agent=agent is not None)
        return prompt
    except PromptError as error:
        raise TaskError(f"{where}: the start prompt is rejected: {error}") from error


def _check_system(prompt: Prompt, columns: Sequence[str], document: Document) -> None:
    try:
        check_system(prompt.system, columns)
    except PromptError as error:
        raise TaskError(f"{document.place(['prompt'])}: the start prompt is rejected: {error}") from error
