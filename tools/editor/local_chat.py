"""The base class of chat models that answer inside this process, without a client library."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict

# Key in the metadata of a reply whose token counts are right even if they are 0 (rule editor, records of calls).
TOKENS_ARE_EXACT = "tokens_are_exact"
LLAMA_CPP = "llama.cpp"  # the `_llm_type` behind `gguf:FILE`


class LocalChat(BaseChatModel):
    """A chat model whose subclass implements `reply_to` instead of LangChain's `_generate`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @abstractmethod
    def reply_to(self, messages: list[BaseMessage], stop: Sequence[str]) -> AIMessage:
        """Answer a chat. An exception reaches the caller, as a provider's own errors do."""

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.reply_to(messages, stop or ()))])


def tokens_used(input_tokens: int, output_tokens: int, reasoning_tokens: int = 0) -> UsageMetadata:
    """Build LangChain's usage record from token counts. reasoning_tokens: those of the output that reasoning took."""
    total = input_tokens + output_tokens
    usage = UsageMetadata(input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=total)
    if reasoning_tokens:
        usage["output_token_details"] = {"reasoning": reasoning_tokens}
    return usage
