"""A chat model with a script: it gives prepared replies, for tests of editors without a network.

    chat = ScriptedChat(["a critique", improved(Prompt(system="Be brief."))])
    edit = Editor(chat).edit(Prompt(), failures)
    assert len(chat.requests) == 2

A reply is a text, an AIMessage (to set `usage_metadata` or `response_metadata`), an exception, which is raised, or a
function of the messages that returns one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import Field

from nslora.tools.editor.local_chat import LocalChat
from nslora.tools.editor.textual_gradients import CLOSE, OPEN, neutralise
from nslora.tools.prompt import Prompt

Reply = str | AIMessage | Exception
Script = Reply | Callable[[list[BaseMessage]], Reply]


class ScriptedChat(LocalChat):
    """A chat model that gives its replies one after another.

    Attributes:
        replies: The script.
        repeat: Whether the last reply is given again when the script has run out.
        requests: The messages of each call so far.
    """

    replies: list[Any]
    repeat: bool = False
    requests: list[list[BaseMessage]] = Field(default_factory=list)

    def __init__(self, replies: Sequence[Script], **fields: Any) -> None:
        super().__init__(**{"replies": list(replies), **fields})

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def reply_to(self, messages: list[BaseMessage], stop: Sequence[str]) -> AIMessage:
        """Give the next reply.

        Raises:
            IndexError: The script has run out.
            Exception: The script's own, if the next reply is an exception.
        """
        self.requests.append(messages)
        number = len(self.requests)
        if number > len(self.replies) and not (self.repeat and self.replies):
            raise IndexError(f"the script has {len(self.replies)} replies, and this is call {number}")
        reply = self.replies[min(number, len(self.replies)) - 1]
        if callable(reply):
            reply = reply(messages)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, AIMessage) else AIMessage(reply)


def improved(prompt: Prompt) -> str:
    """Write the reply by which an editor proposes this prompt, between TextGrad's tags."""
    return f"{OPEN}\n{neutralise(prompt.render())}{CLOSE}"
