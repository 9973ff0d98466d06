"""Rows in the formats of public training data: Alpaca, Dolly, chat messages, ShareGPT, prompts with or without answers.

A row in one of these formats gets the columns `question` and `reference`, and `system` if it has a system message of
its own. Nothing is converted if the row has a column `question`, or if task.yaml names the columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, cycle, pairwise
from typing import Any

from nslora.tools.answers import is_missing, plain
from nslora.tools.errors import TaskError
from nslora.tools.prompt import unix_lines
from nslora.tools.tasks.readers import SourceRow
from nslora.tools.thinking import CLOSING, OPENING, THOUGHT_KEYS

SYSTEM_COLUMN = "system"
_DIALOGUES = ("messages", "conversations")
_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    "developer": "system",
}
_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_Turns = list[tuple[str, str]]  # (role, text)
_Read = tuple[dict[str, Any], _Turns]  # columns, and the turns before the question


def in_known_format(columns: Mapping[str, Any]) -> str | None:
    """Name the format of a row; None if it is none of the known ones."""
    if "question" in columns:
        return None
    found = next((name for name, (needed, _) in _FORMATS.items() if needed <= set(columns)), None)
    return None if found == _PROMPTS and not in_dialogue(columns) else found


def in_dialogue(columns: Mapping[str, Any]) -> bool:
    """Say whether a row holds a list of turns."""
    return any(isinstance(plain(columns.get(name)), list) for name in (*_DIALOGUES, "prompt"))


def converted(rows: Sequence[SourceRow], name: str, named: frozenset[str] = frozenset()) -> list[SourceRow]:
    """Give each row its columns `question`, `reference` and `system`, and the turns before its question.

    Args:
        rows: Rows in the format `name`.
        name: What `in_known_format` said.
        named: The variables of the question template: a column among them is not asked a second time.

    Raises:
        TaskError: If a row is not in the format, or its turns make no dialogue. The message names the row.
    """
    needed, convert = _FORMATS[name]
    found = []
    for row in rows:
        if lacking := needed - set(row.columns):
            raise TaskError(
                f"{row.place}: no column {sorted(lacking)[0]!r}, which other rows have (found: "
                f"{', '.join(map(str, row.columns))}): add it, or name the columns under `fields`."
            )
        columns, history = convert(row, named)
        new = {key: value for key, value in columns.items() if value is not None}
        found.append(replace(row, columns={**row.columns, **new}, history=tuple(history)))
    return found


def _instruction(given: str, output: str) -> _Convert:
    def convert(row: SourceRow, named: frozenset[str]) -> _Read:
        instruction, more = row.columns["instruction"], row.columns.get(given)
        with_more = isinstance(more, str) and more.strip() and given not in named
        question = f"{instruction}\n\n{more}" if with_more and isinstance(instruction, str) else instruction
        earlier = plain(row.columns.get("history")) or []  # LLaMA-Factory: pairs of a question and its answer
        turns = zip(cycle(("user", "assistant")), chain.from_iterable(earlier), strict=False)
        history = [(role, _text_of(row, text)) for role, text in turns]
        return {"question": question, "reference": row.columns[output]}, history

    return convert


def _messages(column: str) -> _Convert:
    def convert(row: SourceRow, named: frozenset[str]) -> _Read:
        system = row.columns.get(SYSTEM_COLUMN)  # beside `conversations`
        return _dialogue(row, _turns(row, row.columns[column]), system if isinstance(system, str) else None)

    return convert


def _prompt(completion: str | None) -> _Convert:
    def convert(row: SourceRow, named: frozenset[str]) -> _Read:
        asked = plain(row.columns.get("prompt"))
        answer = None if completion is None else plain(row.columns[completion])
        if completion == "completion" and plain(row.columns.get("label")) is False:
            raise TaskError(
                f"{row.place}: the completion is labelled false, as in unpaired preferences (KTO), so weights must not "
                "learn it: keep the rows whose label is true."
            )
        if asked is None and isinstance(answer, str):  # hh-rlhf writes all turns in one text
            parts = _HH_TURN.split(answer)
            spoken = zip(parts[1::2], parts[2::2], strict=True)
            turns = [("user" if who == "Human" else "assistant", text.strip()) for who, text in spoken]
            return _dialogue(row, turns, None)
        if not isinstance(asked, list) and not isinstance(answer, list):
            return {"question": asked, "reference": answer}, []
        answers = [] if answer is None else [{"role": "assistant", "content": answer}]
        turns = _turns(row, answer if isinstance(answer, list) else answers)
        if not turns or turns[0][0] == "assistant":  # else the answer repeats the prompt, as in preference pairs
            turns = _turns(row, asked if isinstance(asked, list) else [{"role": "user", "content": asked}]) + turns
        return _dialogue(row, turns, None)

    return convert


def _turns(row: SourceRow, messages: Any) -> _Turns:
    """Read messages as (role, text); ShareGPT writes `from` and `value` for `role` and `content`."""
    messages = plain(messages)
    if isinstance(messages, str) and messages.lstrip().startswith("["):  # as a CSV file holds them
        try:
            messages = json.loads(messages)
        except ValueError as error:
            raise TaskError(f"{row.place}: the messages are invalid JSON ({error}): write a list.") from error
    if not isinstance(messages, list | tuple):
        raise TaskError(f"{row.place}: the messages are {type(messages).__name__}: write a list of role and content.")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise TaskError(f"{row.place}: a message is {type(message).__name__}: write an object of role and content.")
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        role = _ROLES.get(str(role), str(role))
        if role not in ("system", "user", "assistant") or message.get("tool_calls") or message.get("function_call"):
            raise TaskError(
                f"{row.place}: the dialogue has a turn of {role} with a tool, or of another role: only texts of "
                "system, user and assistant can be asked; leave the row out, or write the turn as text of one of them."
            )
        turns.append((role, _text_of(row, content)))
    thoughts = (messages[-1].get(key) for key in THOUGHT_KEYS if turns)
    thought = next((each for each in thoughts if isinstance(each, str)), "").strip()
    if thought and turns[-1][0] == "assistant" and OPENING not in turns[-1][1]:
        turns[-1] = ("assistant", f"{OPENING}\n{thought}\n{CLOSING}\n\n{turns[-1][1]}")
    return turns


def _text_of(row: SourceRow, content: Any) -> str:
    if isinstance(content, list | tuple):
        kinds = {part.get("type") if isinstance(part, Mapping) else "text" for part in content}
        if kinds <= {"text"}:
            parts = (part if isinstance(part, str) else str(part.get("text", "")) for part in content)
            return unix_lines("".join(parts))
        other = sorted(str(kind) for kind in kinds - {"text"})[0]
        raise TaskError(
            f"{row.place}: a message holds a part of the type {other}: only text can be asked; leave it out."
        )
    if not isinstance(content, str):
        raise TaskError(f"{row.place}: a message has no text (came: {str(content)[:40]!r}): write it under `content`.")
    return unix_lines(content)


def _dialogue(row: SourceRow, turns: _Turns, system: str | None) -> _Read:
    """Read the last question, its answer, and the turns before; a system message may stand first."""
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    roles = [role for role, _ in turns]
    if problem := _problem(roles):
        raise TaskError(f"{row.place}: the dialogue {problem}.")
    answer = turns.pop()[1] if roles[-1] == "assistant" else None
    return {"question": turns[-1][1], "reference": answer, SYSTEM_COLUMN: system}, turns[:-1]


def _problem(roles: Sequence[str]) -> str | None:
    """Say why turns make no dialogue, as the end of a sentence."""
    if "user" not in roles:
        return f"has no user turn (turns: {', '.join(roles) or 'none'}): write what is asked"
    if "system" in roles:
        return "has a system turn after its beginning: put it first, or into a user turn"
    if roles[0] == "assistant":
        return "begins with an assistant turn: begin it with what the user asks"
    twice = next((place for place, pair in enumerate(pairwise(roles), 1) if pair[0] == pair[1]), None)
    if twice is not None:
        return f"has two {roles[twice]} turns in a row (turns {twice} and {twice + 1}): make them one"
    return None


def own_system(rows: Sequence[SourceRow]) -> str | None:
    """Find the system message that all rows share; None if they differ or have none."""
    found = {row.columns.get(SYSTEM_COLUMN) for row in rows}
    only = found.pop() if len(found) == 1 else None
    return only if isinstance(only, str) and only.strip() and not is_missing(only) else None


def with_system(row: SourceRow) -> SourceRow:
    """Put the row's own system message before its other turns."""
    system = row.columns.get(SYSTEM_COLUMN)
    if not isinstance(system, str) or not system.strip():
        return row
    return replace(row, history=(("system", system), *row.history))


_Convert = Callable[[SourceRow, frozenset[str]], _Read]
_PREFERENCES = "preference pairs: `chosen` is the reference, and `rejected` is left out"
_PROMPTS = "prompts of several turns"  # a column `prompt` with text is named by `fields`
_FORMATS: dict[str, tuple[set[str], _Convert]] = {
    "Alpaca": ({"instruction", "output"}, _instruction("input", "output")),
    "Dolly": ({"instruction", "response"}, _instruction("context", "response")),
    "chat messages": ({"messages"}, _messages("messages")),
    "ShareGPT": ({"conversations"}, _messages("conversations")),
    "prompt-completion": ({"prompt", "completion"}, _prompt("completion")),
    _PREFERENCES: ({"chosen", "rejected"}, _prompt("chosen")),
    _PROMPTS: ({"prompt"}, _prompt(None)),
}
