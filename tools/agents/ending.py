"""What an agent ended with: its final state as plain values, and the answer in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages
from pydantic import BaseModel

_ANSWERS = ("answer", "output")  # keys of a state, before its messages


def plain(value: Any) -> Any:
    """A value as JSON can hold it; messages without their random ids, unknown objects as their text."""
    if isinstance(value, BaseMessage):
        return convert_to_openai_messages(value)
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def state_of(output: Any) -> dict[str, Any]:
    """The final state; what is no mapping stands under `output`."""
    found: dict[str, Any] = plain(output) if isinstance(output, Mapping) else {"output": plain(output)}
    return found


def answer_in(output: Any, key: str | None) -> str | None:
    """The answer of an agent as text; None if it gave none.

    key: of the state, if the task names one.
    """
    if isinstance(output, Mapping):
        if key is not None:
            return _text(output.get(key))
        for name in _ANSWERS:
            if (found := _text(output.get(name))) is not None:
                return found
        if (structured := output.get("structured_response")) is not None:  # of LangChain's create_agent
            return _text(structured)
        messages = output.get("messages")
        return _text(messages[-1]) if isinstance(messages, list) and messages else None
    return _text(output)


def _text(value: Any) -> str | None:
    if isinstance(value, list) and value and isinstance(value[-1], BaseMessage):
        value = value[-1]
    if isinstance(value, BaseMessage):
        value = str(value.text) if value.type == "ai" else None
    if isinstance(value, BaseModel | Mapping | list):
        value = json.dumps(plain(value), ensure_ascii=False)
    if isinstance(value, int | float):
        value = str(value)
    return value.strip() if isinstance(value, str) and value.strip() else None
