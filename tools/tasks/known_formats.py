"""Rows in the formats of public training data: Alpaca, chat messages, ShareGPT, prompt and completion.

A row in one of these formats gets the columns `question` and `reference`, and `system` if it has a system message of
its own. Nothing is converted if the row has a column `question`, or if task.yaml names the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nslora.tools.answers import is_missing, plain
from nslora.tools.errors import TaskError
from nslora.tools.tasks.readers import SourceRow

SYSTEM_COLUMN = "system"
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
Turns = list[tuple[str, str]]  # (role, text)


def in_known_format(columns: Mapping[str, Any]) -> str | None:
    """Name the format of a row; None if it is none of the known ones."""
    if "question" in columns:
        return None
    return next((name for name, (needed, _) in _FORMATS.items() if needed <= set(columns)), None)


def converted(rows: Sequence[SourceRow], name: str, named: frozenset[str]) -> list[SourceRow]:
    """Give each row its columns `question`, `reference` and `system`.

    Args:
        rows: Rows in the format `name`.
        name: What `in_known_format` said.
        named: The variables of the question template: a column among them is not asked a second time.

    Raises:
        TaskError: If a row is not in the format, or its dialogue has several questions. The message names the row.
    """
    needed, convert = _FORMATS[name]
    found = []
    for row in rows:
        if lacking := needed - set(row.columns):
            raise TaskError(
                f"{row.place}: no column {sorted(lacking)[0]!r}, which other rows have (found: "
                f"{', '.join(map(str, row.columns))}): add it, or name the columns under `fields`."
            )
        new = {key: value for key, value in convert(row, named).items() if value is not None}
        found.append(replace(row, columns={**row.columns, **new}))
    return found


def _alpaca(row: SourceRow, named: frozenset[str]) -> dict[str, Any]:
    instruction, given = row.columns["instruction"], row.columns.get("input")
    with_input = isinstance(given, str) and given.strip() and "input" not in named
    question = f"{instruction}\n\n{given}" if with_input and isinstance(instruction, str) else instruction
    return {"question": question, "reference": row.columns["output"]}


def _messages(column: str) -> Callable[[SourceRow, frozenset[str]], dict[str, Any]]:
    def convert(row: SourceRow, named: frozenset[str]) -> dict[str, Any]:
        system = row.columns.get(SYSTEM_COLUMN)  # beside `conversations`
        return _one_exchange(row, _turns(row, row.columns[column]), system if isinstance(system, str) else None)

    return convert


def _prompt_completion(row: SourceRow, named: frozenset[str]) -> dict[str, Any]:
    prompt, completion = plain(row.columns["prompt"]), plain(row.columns["completion"])
    if isinstance(prompt, list) or isinstance(completion, list):
        asked = _turns(row, prompt) if isinstance(prompt, list) else [("user", prompt)]
        answered = _turns(row, completion) if isinstance(completion, list) else [("assistant", completion)]
        return _one_exchange(row, [*asked, *answered], None)
    return {"question": prompt, "reference": completion}


def _turns(row: SourceRow, messages: Any) -> Turns:
    """Read messages as (role, text); ShareGPT writes `from` and `value` for `role` and `content`."""
    messages = plain(messages)
    if not isinstance(messages, list | tuple):
        raise TaskError(f"{row.place}: the messages are {type(messages).__name__}: write a list of role and content.")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise TaskError(f"{row.place}: a message is {type(message).__name__}: write an object of role and content.")
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        turns.append((_ROLES.get(str(role), str(role)), _text_of(row, content)))
    return turns


def _text_of(row: SourceRow, content: Any) -> str:
    if isinstance(content, list | tuple):
        kinds = {part.get("type") if isinstance(part, Mapping) else "text" for part in content}
        if kinds <= {"text"}:
            return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
        other = sorted(str(kind) for kind in kinds - {"text"})[0]
        raise TaskError(
            f"{row.place}: a message holds a part of the type {other}: only text can be asked; leave it out."
        )
    if not isinstance(content, str):
        raise TaskError(f"{row.place}: a message has no text (came: {str(content)[:40]!r}): write it under `content`.")
    return content


def _one_exchange(row: SourceRow, turns: Turns, system: str | None) -> dict[str, Any]:
    """Read one question and its answer, after an optional system message."""
    if turns and turns[0][0] in ("system", "developer"):
        system, turns = turns[0][1], turns[1:]
    roles = [role for role, _ in turns]
    if roles not in (["user", "assistant"], ["user"]):
        raise TaskError(
            f"{row.place}: the dialogue has the turns {', '.join(roles) or 'none'}, but a row holds one user turn and "
            "one assistant turn: cut it into one row for each question."
        )
    answer = turns[1][1] if len(turns) > 1 else None
    return {"question": turns[0][1], "reference": answer, SYSTEM_COLUMN: system}


def own_system(rows: Sequence[SourceRow]) -> str | None:
    """Find the system message that all rows share; None if they differ or have none."""
    found = {row.columns.get(SYSTEM_COLUMN) for row in rows}
    only = found.pop() if len(found) == 1 else None
    return only if isinstance(only, str) and only.strip() and not is_missing(only) else None


def with_system(row: SourceRow) -> SourceRow:
    """Put the row's system message before its question."""
    system = row.columns.get(SYSTEM_COLUMN)
    if not isinstance(system, str) or not system.strip():
        return row
    return replace(row, columns={**row.columns, "question": f"{system}\n\n{row.columns['question']}"})


_Convert = Callable[[SourceRow, frozenset[str]], dict[str, Any]]
_FORMATS: dict[str, tuple[set[str], _Convert]] = {
    "Alpaca": ({"instruction", "output"}, _alpaca),
    "chat messages": ({"messages"}, _messages("messages")),
    "ShareGPT": ({"conversations"}, _messages("conversations")),
    "prompt-completion": ({"prompt", "completion"}, _prompt_completion),
}
