"""A task: rows in three disjoint splits, the reward that judges replies to them, the prompt to start from.

`load_task("handbook")` is the embedded one; a folder or a task.yaml is anyone's own; `task_from_rows` needs no files.
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

from pydantic import ValidationError

from nslora.tools.errors import PromptError, TaskError
from nslora.tools.files import as_text, sha256_of_json
from nslora.tools.prompt import Prompt, normalise, parse
from nslora.tools.rewards.reward import Reward, build_reward, first_problem
from nslora.tools.schema import Example
from nslora.tools.tasks.readers import SourceRow, from_python, read_dataset, read_rows, split_off
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

_FORMATS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Task:
    """Rows, reward and start of a run.

    hash: sha256 over rows, reward and start prompt, 64 hex characters. source and options are what `load_task` was
    given, so that another process can load the task again; source is "" for rows from Python.
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
    """A task by the name of an embedded one, or by the path of a folder or a task.yaml.

    style chooses one of the task's styles, combine is "mean" or "all"; overrides replace top-level fields of the
    task.yaml. Raises TaskError or RewardError with file, line and field; nothing is written.
    """
    document = _document(source)
    if combine is not None and combine not in ("mean", "all"):
        raise TaskError(f"Unknown combine {combine!r} (known: mean, all).")
    spec = validated(document, overrides)
    reward = reward_of(spec, document, style, combine)
    options = {"style": style, "combine": combine, **overrides}
    prompt = _prompt(spec.prompt, document.folder, str(document.path))
    return _task(
        spec.name,
        _rows(spec, document),
        spec.fields,
        reward,
        prompt,
        spec.max_new_tokens,
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
    """A task from rows in memory.

    reward: check specs, or a callable of (question, reference, reply) that returns a number in [0, 1],
    (number, feedback) or a Score. Raises TaskError or RewardError.
    """
    try:
        mapping = Fields.model_validate(dict(fields or {}))
    except ValidationError as error:
        raise TaskError(f"task_from_rows: fields: {first_problem(error, Fields)}.") from error
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise TaskError(
            f"task_from_rows: max_new_tokens is {max_new_tokens!r}, but a whole number of at least 1 is needed."
        )
    if not isinstance(name, str) or not name.strip():
        raise TaskError(f"task_from_rows: name is {name!r}, but a text is needed.")
    if not isinstance(prompt, Prompt | str | None):
        raise TaskError(f"task_from_rows: prompt is a {type(prompt).__name__}: give a Prompt, its document or a file.")
    given = {"train": train, "validation": validation, "test": test}
    rows = {split: from_python(values, split) for split, values in given.items()}
    start = prompt if isinstance(prompt, Prompt) else _prompt(prompt, Path(), "task_from_rows")
    built = build_reward(reward, combine=combine)
    return _task(name, rows, mapping, built, start, max_new_tokens, source="", options={})


def embedded_tasks() -> tuple[str, ...]:
    """The names of the tasks that come with the package."""
    return tuple(sorted(path.parent.name for path in (Path(__file__).parent / "embedded").glob("*/task.yaml")))


def same_question(question: str) -> str:
    """What two questions share if they are the same one: case, spacing and the marks at the end aside."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split()).rstrip(" .?!")


def keys_of(question: str) -> set[str]:
    """What a question shares with one that is the same: as splits are cut, or as a prompt is searched for copies."""
    return {same_question(question), normalise(question)} - {""}  # of one that is all punctuation


def any_keys(examples: Iterable[Example]) -> set[str]:
    """The keys of all their questions."""
    return set().union(*(keys_of(example.question) for example in examples))


def _document(source: str | Path) -> Document:
    if str(source) in embedded_tasks():
        return read_document(Path(__file__).parent / "embedded" / str(source) / "task.yaml")
    try:
        return _document_at(Path(source))
    except OSError as error:
        raise TaskError(
            f"The task {source} cannot be read ({error.strerror or error}): see to its name and its rights."
        ) from error


def _document_at(path: Path) -> Document:
    if path.is_dir() and (path / "task.yaml").is_file():
        return read_document(path / "task.yaml")
    if path.is_dir():
        files = {split: _first_file(path, split) for split in SPLITS}
        return Document(path, path.absolute(), {"data": files}, None)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return read_document(path)
    known = ", ".join(embedded_tasks())
    raise TaskError(f"No task {str(path)!r}: name a folder, a task.yaml or an embedded task (known: {known}).")


def _first_file(folder: Path, split: str) -> str:
    for suffix in _FORMATS:
        if (folder / f"{split}{suffix}").is_file():
            return f"{split}{suffix}"
    raise TaskError(f"{folder}: neither task.yaml nor {split}.jsonl (or .json, .csv, .parquet) is in this folder.")


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
    name: str,
    rows: Mapping[str, Sequence[SourceRow]],
    fields: Fields,
    reward: Reward,
    prompt: Prompt,
    max_new_tokens: int,
    *,
    source: str,
    options: Mapping[str, Any],
) -> Task:
    splits = {split: _examples(split, rows[split], fields, reward) for split in SPLITS}
    _refuse_duplicate_ids(splits)
    _refuse_overlap(splits)
    content = {split: [[e.id, e.question, e.reference, dict(e.fields)] for e in splits[split]] for split in SPLITS}
    plain = json.loads(
        json.dumps({"rows": content, "reward": reward.spec, "max_new_tokens": max_new_tokens}, default=as_text)
    )
    return Task(
        name=name,
        **splits,
        reward=reward,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        hash=sha256_of_json({**plain, "prompt": prompt.render()}),
        source=source,
        options=dict(options),
    )


def _examples(split: str, rows: Sequence[SourceRow], fields: Fields, reward: Reward) -> tuple[Example, ...]:
    if not rows:
        raise TaskError(f"The split {split!r} has no rows: give it some, or a larger share under `split`.")
    examples = []
    for row in rows:
        reference = None if fields.reference is None else _text(row, "reference", fields.reference)
        example = Example(_id(row, fields, split), _question(row, fields), reference, row.columns)
        problem = reward.problem(example)
        if problem is not None:
            raise TaskError(f"{row.place}: {problem}.")
        examples.append(example)
    return tuple(examples)


def _question(row: SourceRow, fields: Fields) -> str:
    return _text(row, "question", fields.question)


def _text(row: SourceRow, role: str, column: str) -> str:
    if column not in row.columns:
        none = ", or write `reference: null` there if the task has none" if role == "reference" else ""
        raise TaskError(
            f"{row.place}: no field {column!r} (found: {', '.join(map(str, row.columns))}): "
            f"name the column with fields.{role} in task.yaml{none}."
        )
    value = row.columns[column]
    if not isinstance(value, str):
        raise TaskError(
            f"{row.place}: the {role} {str(value)[:80]!r} is no text but {type(value).__name__}: write it in quotes, "
            "or make the column one of text."
        )
    if not value.strip():
        raise TaskError(f"{row.place}: the {role} is empty: fill it in or remove the row.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskError(f"{row.place}: the {role} holds half of a surrogate pair, which no tokenizer takes: mend it.")
    return value


def _id(row: SourceRow, fields: Fields, split: str) -> str:
    column = fields.id or "id"
    value = row.columns.get(column)
    if value is None and fields.id is None:
        return f"{split}-{row.number}"
    if not isinstance(value, bool) and isinstance(value, Integral):  # one of NumPy's, too
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise TaskError(f"{row.place}: the id in the field {column!r} is {value!r}: give each row a text or a number.")
    return str(value)


def _refuse_duplicate_ids(splits: Mapping[str, Sequence[Example]]) -> None:
    seen: dict[str, str] = {}
    for split, examples in splits.items():
        for example in examples:
            if example.id in seen:
                raise TaskError(
                    f"The id {example.id!r} stands twice, in {seen[example.id]} and in {split}: give each row its own, "
                    "or take the column of ids out, and rows are numbered."
                )
            seen[example.id] = split


def _refuse_overlap(splits: Mapping[str, Sequence[Example]]) -> None:
    """A row that is judged by must not be learnt from, whatever its reference says."""
    keys = {split: any_keys(splits[split]) for split in ("train", "validation")}
    for held_out, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        known = keys[other]
        copies = [example for example in splits[held_out] if keys_of(example.question) & known]
        if copies:
            raise TaskError(
                f"The splits overlap: {len(copies)} of the {len(splits[held_out])} {held_out} rows stand in {other}, "
                f"first {copies[0].id} {copies[0].question[:80]!r}: remove them from one of the two."
            )


def _prompt(document: str | None, folder: Path, where: str) -> Prompt:
    """The prompt of a document, or of the file that a one-line text ending in .md names."""
    if document is None:
        return Prompt()
    if "\n" not in document.strip() and document.strip().endswith(".md"):
        path = folder / document.strip()
        try:
            document, where = path.read_text(encoding="utf-8-sig"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"{where}: the prompt {path} cannot be read ({error}).") from error
    try:
        return parse(document)
    except PromptError as error:
        raise TaskError(
            f"{where}: the start prompt is refused: {error} (A system turn alone, in Python: Prompt(system=...).)"
        ) from error
