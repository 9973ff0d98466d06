"""A failing trajectory once more, with one call mended: would the reward have paid, had the call been well-formed?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.utils.json import parse_partial_json

from nslora.tools.inference.tool_turns import tools_of
from nslora.tools.trajectory import ModelCall, Trajectory

_NAMES = ("name", "tool", "function", "tool_name", "action")
_ARGUMENTS = ("arguments", "parameters", "args", "input", "action_input")


@dataclass(frozen=True)
class Mend:
    """A reply that takes the place of one call's. call: its number, from 0."""

    call: int
    reply: str


def mend_of(trajectory: Trajectory) -> Mend | None:
    """The first call of a tool that could not be read, as it was probably meant; None if there is none.

    That is a malformed call, or an answer that holds a call in another form, as in a code fence.
    """
    for number, call in enumerate(trajectory.calls):
        if (call.malformed or not call.calls_tools) and (meant := meant_call(call)) is not None:
            return Mend(number, meant)
        if call.malformed:
            return None
    return None


def meant_call(call: ModelCall) -> str | None:
    """The call that a reply means, well-formed; None if it names no tool that it was offered, with arguments."""
    functions = [tool["function"] for tool in tools_of(call.dialogue)[0]]
    start = call.reply.find("{")
    if not functions or start < 0:
        return None
    try:
        said = parse_partial_json(call.reply[start:].replace("</tool_call>", "").rstrip("`\n "))
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    if isinstance(said.get("function"), dict):
        said = said["function"]
    function = _named(said, functions)
    arguments = _arguments(said, function) if function else None
    if function is None or arguments is None:
        return None
    written = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def _named(said: dict[str, Any], functions: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    names = {str(said[key]).strip() for key in _NAMES if isinstance(said.get(key), str)}
    return next((function for function in functions if function["name"] in names), None)


def _arguments(said: dict[str, Any], function: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments under one of their usual keys, or beside the name."""
    wanted = function.get("parameters", {}).get("properties", {})
    for key in _ARGUMENTS:
        value = said.get(key)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = {next(iter(wanted)): value} if len(wanted) == 1 else None
        if isinstance(value, dict):
            return value
    beside = {name: said[name] for name in wanted if name in said}
    return beside if beside or not wanted else None
