"""Dialogues with tools: a first turn of the role `tools` holds their schemas as JSON, so that a dialogue stays text.

Everything that keeps, counts or sends dialogues then works for agents too. The chat template gets the schemas as
`tools=`. A template that knows no tools gets them in words, in the format of Hermes and Qwen: schemas in the system
turn, results in a user turn.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from nslora.tools.schema import Dialogue, Message

TOOLS, TOOL = "tools", "tool"  # roles
TOOL_CALLS = "tool_calls"  # key of an assistant turn that the policy did not write: its calls, as JSON
# What Qwen's templates write after the system turn, https://github.com/NousResearch/Hermes-Function-Calling.
_IN_WORDS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def with_tools(dialogue: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """The dialogue with the schemas of its tools in front; without tools as it is."""
    said = [{"role": TOOLS, "content": json.dumps(list(tools), ensure_ascii=False)}] if tools else []
    return [*said, *dialogue]


def tools_of(dialogue: Dialogue) -> tuple[list[dict[str, Any]], list[Message]]:
    """The schemas in front of a dialogue, and its turns."""
    if dialogue and dialogue[0]["role"] == TOOLS:
        return json.loads(dialogue[0]["content"]), list(dialogue[1:])
    return [], list(dialogue)


def for_template(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """The turns as a chat template takes them: with calls as objects."""
    return [{**turn, TOOL_CALLS: json.loads(turn[TOOL_CALLS])} if TOOL_CALLS in turn else dict(turn) for turn in turns]


def in_words(tools: Sequence[dict[str, Any]], turns: Sequence[Message]) -> list[Message]:
    """The turns for a template that knows no tools."""
    system = [turns[0]["content"]] if turns and turns[0]["role"] == "system" else []
    schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    words = "\n\n".join([*system, *([_IN_WORDS.format(tools=schemas)] if tools else [])])
    told: list[Message] = [{"role": "system", "content": words}] if words else []
    for role, group in groupby(turns[len(system) :], key=lambda turn: turn["role"]):
        if role == TOOL:
            results = [f"<tool_response>\n{turn['content']}\n</tool_response>" for turn in group]
            told.append({"role": "user", "content": "\n".join(results)})
        else:
            told += [{"role": role, "content": _spoken(turn)} for turn in group]
    return told


def _spoken(turn: Message) -> str:
    """An assistant turn with its calls in its text."""
    calls = [call["function"] for call in json.loads(turn.get(TOOL_CALLS, "[]"))]
    written = [
        f"<tool_call>\n{json.dumps({'name': call['name'], 'arguments': call['arguments']}, ensure_ascii=False)}\n"
        "</tool_call>"
        for call in calls
    ]
    return "\n".join([*([turn["content"]] if turn["content"] else []), *written])
