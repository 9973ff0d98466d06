"""The policy as the chat model of an agent: LangChain's interface, with tools, over a queue of model calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from nslora.tools.agents.messages import dialogue_of, message_of
from nslora.tools.editor.local_chat import LocalChat, tokens_used
from nslora.tools.schema import Message
from nslora.tools.trajectory import ModelCall


class PolicyChat(LocalChat):
    """The policy with its present adapter, as `make_agent` gets it.

    Replies are those of `Policy.generate`, at most `max_new_tokens` long; settings of `bind` such as `temperature` have
    no effect. `bind_tools` sends the schemas of tools through the chat template. `tool_choice` has no effect.

    Attributes:
        call: Sends a dialogue, which may hold tools, waits for the reply, and puts it on record.
        texts: Texts of the prompt's sections by name. One with the name of a tool takes the place of its description.
        name_of_model: For LangChain's records.
    """

    call: Callable[[list[Message], bool], ModelCall]
    texts: Mapping[str, str]
    name_of_model: str = "policy"

    @property
    def _llm_type(self) -> str:
        return "nslora-policy"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """The chat model with tools: functions, LangChain tools, pydantic models or schemas."""
        schemas = [self._described(convert_to_openai_tool(tool)) for tool in tools]
        return self.bind(tools=schemas, **kwargs)

    def _described(self, schema: dict[str, Any]) -> dict[str, Any]:
        function = schema["function"]
        if (text := self.texts.get(function["name"])) is None:
            return schema
        return {**schema, "function": {**function, "description": text}}

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, tools: Any = None, **_: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.reply_to(messages, stop or (), tools or ()))])

    def reply_to(
        self, messages: list[BaseMessage], stop: Sequence[str], tools: Sequence[dict[str, Any]] = ()
    ) -> AIMessage:
        """Answer a chat, with the calls of tools in it."""
        dialogue = dialogue_of(messages, tools)
        said = self.call(dialogue, bool(tools))
        reply = said.reply
        for end in filter(None, stop):
            reply = reply.partition(end)[0]
        metadata = {"model_name": self.name_of_model, "finish_reason": "length" if said.truncated else "stop"}
        message, _ = message_of(dialogue, reply, reads_tools=bool(tools), metadata=metadata)
        message.usage_metadata = tokens_used(said.prompt_tokens, said.forward_tokens - said.prompt_tokens)
        return message
