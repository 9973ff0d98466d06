"""A chat model that says what it was told to say: ships with the package, for tests of editors without a network.

    chat = ScriptedChat(["a critique", improved(Prompt(system="Be brief."))])
    edit = Editor(chat).edit(Prompt(), failures)
    assert len(chat.requests) == 2

A reply may be a text, a finished AIMessage (to set `usage_metadata` or `response_metadata`), an exception, which is
raised, or a function of the messages that returns one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict, Field

from nslora.tools.editor.textual_gradients import CLOSE, OPEN, neutralise
from nslora.tools.prompt import Prompt

Reply = str | AIMessage | Exception
Script = Reply | Callable[[list[BaseMessage]], Reply]


class ScriptedChat(BaseChatModel):
    """Gives its replies one after another; with repeat=True the last one for ever.

    requests: the messages of each call so far. Raises IndexError, as a provider would raise its own error, when the
    script has run out.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    replies: list[Any]
    repeat: bool = False
    requests: list[list[BaseMessage]] = Field(default_factory=list)

    def __init__(self, replies: Sequence[Script], **fields: Any) -> None:
        super().__init__(**{"replies": list(replies), **fields})

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.requests.append(messages)
        number = len(self.requests)
        if number > len(self.replies) and not (self.repeat and self.replies):
            raise IndexError(f"the script has {len(self.replies)} replies, and this is call {number}")
        reply = self.replies[min(number, len(self.replies)) - 1]
        if callable(reply):
            reply = reply(messages)
        if isinstance(reply, Exception):
            raise reply
        message = reply if isinstance(reply, AIMessage) else AIMessage(reply)
        return ChatResult(generations=[ChatGeneration(message=message)])


def improved(prompt: Prompt) -> str:
    """An optimizer's reply that proposes this prompt, as a well-behaved editor would write it."""
    return f"{OPEN}\n{neutralise(prompt.render())}{CLOSE}"
