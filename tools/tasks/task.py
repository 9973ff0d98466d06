"""A task: rows in three disjoint splits, a reward that scores replies, and the prompt that a run starts from.

`load_task("handbook")` loads an embedded task, `load_task(path)` a folder or a task.yaml, and `task_from_rows` takes
rows from Python.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from nslora.tools.errors import PromptError, TaskError
from nslora.tools.files import as_text, sha256_of_json
from nslora.tools.prompt import Prompt, normalise, parse
from nslora.tools.rewards.reward import Reward, build_reward
from nslora.tools.schema import Example
from nslora.tools.tasks.readers import SourceRow, from_python, read_dataset, read_rows, readable, split_off
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

_EMBEDDED = Path(__file__).parent / "embedded"
_FORMATS = (".jsonl", ".json", ".csv", ".parquet")


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
        hash: SHA-256 of rows, reward, max_new_tokens and start prompt, 64 hex characters.
        source: First argument of `load_task`, so that another process can load the task; "" for rows from Python.
        options: Keyword arguments of `load_task`.
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


def load_task(source: str | Path, *, style: str | None = None, combine: str | None = None, **overrides: Any) -> Task:
    """Load a task. Nothing is written.

    Args:
        source: Name of an embedded task, or path of a folder or a task.yaml.
        style: One of the styles in task.yaml.
        combine: "mean" or "all"; replaces reward.combine.
        **overrides: Replace top-level fields of task.yaml.

    Raises:
        TaskError: If the task cannot be read. The message names file, line and field.
        RewardError: If a check is unknown or rejects its options.
    """
    document = _document(source)
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
    train: Iterable[Mapping[str, Any]],
    validation: Iterable[Mapping[str, Any]],
    test: Iterable[Mapping[str, Any]],
    reward: Sequence[Any] | Callable[..., Any] = ("exact_match",),
    name: str = "rows",
    combine: str = "mean",
    prompt: Prompt | str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    fields: Mapping[str, str | None] | None = None,
) -> Task:
    """Make a task from rows in memory.

    Args:
        train: Rows that updates learn from, each a mapping of columns.
        validation: Rows that decide whether a candidate is kept.
        test: Rows for the final measurement.
        reward: Check specs, or a callable of (question, reference, reply), or with the signature of another framework
            (`rewards.signatures.KNOWN`). It returns a number in [0, 1], a pair (number, feedback) or a Score.
        name: Shown in reports.
        combine: "mean" or "all"; see `Reward`.
        prompt: The start prompt, its document, or the path of a document that ends in .md.
        max_new_tokens: Longest reply, in tokens.
        fields: Column names for "question", "reference" and "id".

    Raises:
        TaskError: If a row or an argument is wrong.
        RewardError: If a check is unknown or rejects its options.
    """
    content = {
        "name": name,
        "data": dict.fromkeys(SPLITS, ""),  # TaskSpec asks for a source
        "fields": fields or {},
        "prompt": prompt.render() if isinstance(prompt, Prompt) else prompt,
        "max_new_tokens": max_new_tokens,
    }
    document = Document(Path("task_from_rows"), Path(), content)
    spec = validated(document, {})
    rows = {split: from_python(values, split) for split, values in zip(SPLITS, (train, validation, test), strict=True)}
    return _task(spec, rows, build_reward(reward, combine=combine), document, source="", options={})


def embedded_tasks() -> tuple[str, ...]:
    """Names of the tasks in the package."""
    return tuple(sorted(path.parent.name for path in _EMBEDDED.glob("*/task.yaml")))


def same_question(question: str) -> str:
    """Normalise a question: NFKC, no case, single spaces, no ` .?!` at the end. Equal results are one question."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split()).rstrip(" .?!")


def keys_of(question: str) -> set[str]:
    """Two questions that share a key are one: by `same_question`, or by the `normalise` of prompt checks."""
    return {same_question(question), normalise(question)} - {""}  # "": a question of punctuation alone


def any_keys(examples: Iterable[Example]) -> set[str]:
    """Union of the keys of all questions."""
    return set().union(*(keys_of(example.question) for example in examples))


def _document(source: str | Path) -> Document:
    """Find and parse the task; a folder without task.yaml holds one file for each split."""
    path = _EMBEDDED / str(source) if str(source) in embedded_tasks() else Path(source)
    with readable(path):
        if path.is_dir() and (path / "task.yaml").is_file():
            return read_document(path / "task.yaml")
        if path.is_dir():
            return Document(path, path.absolute(), {"data": {split: _first_file(path, split) for split in SPLITS}})
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return read_document(path)
    known = ", ".join(embedded_tasks())
    raise TaskError(f"No task {str(path)!r}: give a folder, a task.yaml or an embedded task (known: {known}).")


def _first_file(folder: Path, split: str) -> str:
    for suffix in (".jsonl", ".json", ".csv", ".parquet"):
        if (folder / f"{split}{suffix}").is_file():
            return f"{split}{suffix}"
    raise TaskError(f"{folder}: the folder has neither task.yaml nor {split}.jsonl (or .json, .csv, .parquet).")


def _rows(spec: TaskSpec, document: Document) -> dict[str, list[SourceRow]]:
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

    rows = {split: of(split, name) for split in SPLITS if (name := getattr(spec.sources, split)) is not None}
    shares = {split: getattr(spec.split, split) for split in SPLITS if split not in rows}
    if spec.split is not None:
        rows.update(
            split_off(rows["train"], shares, spec.split.seed, lambda row: same_question(_question(row, spec.fields)))
        )
    return rows


def _task(
    spec: TaskSpec,
    rows: Mapping[str, Sequence[SourceRow]],
    reward: Reward,
    document: Document,
    *,
    source: str,
    options: Mapping[str, Any],
) -> Task:
    prompt = _prompt(spec.prompt, document)
    splits = {split: _examples(split, rows[split], spec.fields, reward) for split in SPLITS}
    _check_ids(splits)
    _check_overlap(splits)
    content = {split: [[e.id, e.question, e.reference, dict(e.fields)] for e in splits[split]] for split in SPLITS}
    hashed = {"rows": content, "reward": reward.spec, "max_new_tokens": spec.max_new_tokens}
    return Task(
        name=spec.name,
        **splits,
        reward=reward,
        prompt=prompt,
        max_new_tokens=spec.max_new_tokens,
        hash=sha256_of_json({**json.loads(json.dumps(hashed, default=as_text)), "prompt": prompt.render()}),
        source=source,
        options=dict(options),
    )


def _examples(split: str, rows: Sequence[SourceRow], fields: Fields, reward: Reward) -> tuple[Example, ...]:
    if not rows:
        raise TaskError(f"The split {split!r} has no rows: add rows, or raise its share under `split`.")
    examples = []
    for row in rows:
        reference = None if fields.reference is None else _text(row, "reference", fields.reference)
        example = Example(_id(row, fields, split), _question(row, fields), reference, row.columns)
        if problem := reward.problem(example):
            raise TaskError(f"{row.place}: {problem}.")
        examples.append(example)
    return tuple(examples)


def _question(row: SourceRow, fields: Fields) -> str:
    return _text(row, "question", fields.question)


def _text(row: SourceRow, role: str, column: str) -> str:
    """Read a column that must hold text."""
    if column not in row.columns:
        hint = ", or write `reference: null` if the task has no references" if role == "reference" else ""
        raise TaskError(
            f"{row.place}: no field {column!r} (found: {', '.join(map(str, row.columns))}): "
            f"name the column under fields.{role} in task.yaml{hint}."
        )
    value = row.columns[column]
    if not isinstance(value, str):
        raise TaskError(
            f"{row.place}: the {role} {str(value)[:80]!r} has the type {type(value).__name__}, but text is needed: "
            "quote the value, or convert the column to text."
        )
    if not value.strip():
        raise TaskError(f"{row.place}: the {role} is empty: fill it in or remove the row.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskError(f"{row.place}: the {role} holds an unpaired surrogate, which tokenizers reject: remove it.")
    return value


def _id(row: SourceRow, fields: Fields, split: str) -> str:
    column = fields.id or "id"
    value = row.columns.get(column)
    if value is None and fields.id is None:
        return f"{split}-{row.number}"
    if isinstance(value, bool) or not isinstance(value, str | Integral) or not str(value).strip():
        raise TaskError(f"{row.place}: the id in the column {column!r} is {value!r}: give each row a text or a number.")
    return str(value)


def _check_ids(splits: Mapping[str, Sequence[Example]]) -> None:
    """Raise TaskError if two rows share an id."""
    seen: dict[str, str] = {}
    for split, examples in splits.items():
        for example in examples:
            if example.id in seen:
                raise TaskError(
                    f"The id {example.id!r} repeats, in {seen[example.id]} and in {split}: give each row a unique id, "
                    "or remove the id column so that rows are numbered."
                )
            seen[example.id] = split


def _check_overlap(splits: Mapping[str, Sequence[Example]]) -> None:
    """Raise TaskError if a question is in two splits, whatever the references are."""
    for held_out, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        known = any_keys(splits[other])
        copies = [example for example in splits[held_out] if keys_of(example.question) & known]
        if copies:
            raise TaskError(
                f"The splits overlap: {len(copies)} of the {len(splits[held_out])} {held_out} rows are in {other} too, "
                f"first {copies[0].id} {copies[0].question[:80]!r}: remove them from one of the two."
            )


def _prompt(text: str | None, document: Document) -> Prompt:
    """Parse a prompt document; one line that ends in .md is the path of the document."""
    if text is None:
        return Prompt()
    where = document.path
    if "\n" not in text.strip() and text.strip().endswith(".md"):
        where = document.folder / text.strip()
        with readable(where):
            text = where.read_text(encoding="utf-8-sig")
    try:
        return parse(text)
    except PromptError as error:
        raise TaskError(
            f"{where}: the start prompt is rejected: {error} (In Python, Prompt(system=...) makes a system turn only.)"
        ) from error
