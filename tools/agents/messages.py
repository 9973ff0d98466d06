"""LangChain's messages as turns of a dialogue, and a policy's reply as a message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from nslora.tools.agents.tool_calls import Calls, read_calls
from nslora.tools.inference.tool_turns import TOOL, TOOL_CALLS, with_tools
from nslora.tools.schema import Dialogue, Message
from nslora.tools.thinking import split_thinking, thought_in

ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": TOOL}
WRITTEN = "written"  # key of a message's metadata: the reply as the policy wrote it, without its thinking


def dialogue_of(messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]] = ()) -> list[Message]:
    """The messages as turns. System turns become one in front, since templates know one alone.

    The policy's own replies are sent as it wrote them, so that each call's dialogue begins with the one before.
    """
    system = "\n\n".join(text for each in messages if each.type == "system" and (text := str(each.text)))
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    turns += [_turn(each) for each in messages if each.type != "system"]
    return with_tools(turns, tools)


def _turn(message: BaseMessage) -> Message:
    text = str(message.text)
    if isinstance(message, ToolMessage):
        return {"role": TOOL, **({"name": message.name} if message.name else {}), "content": text}
    if isinstance(message, AIMessage):
        written = message.response_metadata.get(WRITTEN)
        if isinstance(written, str) and _same(read_calls(written, ""), message):
            return {"role": "assistant", "content": written}
        if message.tool_calls:
            calls = [
                {"type": "function", "function": {"name": each["name"], "arguments": each["args"]}}
                for each in message.tool_calls
            ]
            return {"role": "assistant", "content": text, TOOL_CALLS: json.dumps(calls, ensure_ascii=False)}
    return {"role": ROLES.get(message.type, "user"), "content": text}


def _same(calls: Calls, message: AIMessage) -> bool:
    """Whether a message still says and calls what the policy wrote; an agent may have changed it."""
    if str(message.text) == message.response_metadata[WRITTEN] and not message.tool_calls:
        return True
    called = [(each["name"], each["args"]) for each in message.tool_calls]
    return str(message.text) == calls.text and called == [(each["name"], each["args"]) for each in calls.valid]


def message_of(
    dialogue: Dialogue, reply: str, *, reads_tools: bool, metadata: dict[str, Any]
) -> tuple[AIMessage, Calls]:
    """A reply as LangChain's message, with its tool calls and the invalid ones among them.

    Args:
        dialogue: What was sent; with the reply, it names the calls.
        reply: The reply, with its thinking.
        reads_tools: Whether the call came with tools; else a reply is text, whatever it looks like.
        metadata: Of the response.
    """
    thinking, written = split_thinking(reply)
    ids = hashlib.sha256(json.dumps(list(dialogue)).encode()).hexdigest()[:8]
    calls = read_calls(written, ids) if reads_tools else Calls(written)
    message = AIMessage(
        calls.text,
        tool_calls=list(calls.valid),
        invalid_tool_calls=list(calls.invalid),
        additional_kwargs={"reasoning_content": thought_in(thinking)} if thinking else {},
        response_metadata={**metadata, WRITTEN: written},
    )
    return message, calls
