"""Tool calls in a reply, in the formats of Qwen and Hermes (`<tool_call>` blocks) and of Llama (bare JSON).

transformers' `parse_response` and TRL's templates for it need a known chat template, and read a malformed call as plain
text or raise: an agent could not tell it from an answer, and nobody could learn from it. So calls are read here, into
LangChain's own records of calls and of invalid calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCall

_BLOCK = re.compile(r"<tool_call>(.*?)(?:(</tool_call>)|$)", re.DOTALL)
# Llama 3 begins a reply with a call, perhaps behind <|python_tag|>, and separates several by semicolons.
_BARE = re.compile(
    r'\s*(?:<\|python_tag\|>)?\s*\{\s*"(?:name|type|function)"\s*:.*"(?:parameters|arguments)"\s*:', re.DOTALL
)
_KEYS = {"name", "type", "id", "arguments", "parameters"}


@dataclass(frozen=True)
class Calls:
    """What a reply says and calls. text: without the calls."""

    text: str
    valid: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()

    @property
    def problem(self) -> str:
        """What is wrong with the first invalid call; "" if all are valid."""
        return str(self.invalid[0]["error"]) if self.invalid else ""


def read_calls(reply: str, ids: str) -> Calls:
    """Read the tool calls of a reply.

    Args:
        reply: The reply, without its thinking.
        ids: Begins the calls' ids, which have to be unique in a dialogue.
    """
    text, found = reply, list[tuple[str, bool]]()
    if "<tool_call>" in reply:
        found = [(each[1].strip(), each[2] is not None) for each in _BLOCK.finditer(reply)]
        text = _BLOCK.sub("", reply).strip()
    elif _BARE.match(reply):
        found = [(each, True) for each in _bare_objects(reply.replace("<|python_tag|>", "").strip())]
        text = ""
    valid, invalid = list[ToolCall](), list[InvalidToolCall]()
    for number, (written, closed) in enumerate(found):
        call = _read(written) if closed else "the call is not closed by </tool_call>"
        name = f"{ids}{number}"
        if isinstance(call, str):
            invalid.append(InvalidToolCall(name=None, args=written, id=name, error=call, type="invalid_tool_call"))
        else:
            valid.append(ToolCall(name=call[0], args=call[1], id=name, type="tool_call"))
    return Calls(text, tuple(valid), tuple(invalid))


def _bare_objects(text: str) -> Iterator[str]:
    """The JSON objects of a text, divided by semicolons; what cannot be read is one of them."""
    decoder = json.JSONDecoder()
    while text:
        try:
            _, end = decoder.raw_decode(text)
        except ValueError:
            yield text
            return
        yield text[:end]
        text = text[end:].strip()
        if text and not text.startswith(";"):
            yield text
            return
        text = text.lstrip("; \n")


def _read(written: str) -> tuple[str, dict[str, Any]] | str:
    """Name and arguments of a call, or what is wrong with it."""
    try:
        call = json.loads(written)
    except ValueError as error:
        return f"the call is not valid JSON ({error})"
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]  # as OpenAI writes it
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return 'the call has no "name"'
    if unknown := sorted(set(call) - _KEYS):
        return f"the call has the unknown key {unknown[0]!r}"
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, dict):
        return f"the arguments are {type(arguments).__name__}, but a JSON object is wanted"
    return call["name"], arguments
