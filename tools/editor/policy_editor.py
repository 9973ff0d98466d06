"""The editor "policy": the model that is adapted edits its own prompt, under the adapter in force.

Small models rarely write a whole valid document; what they write is checked like any other editor's reply, and a
failed edit costs the run nothing but its seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict

from nslora.tools.errors import EditorError
from nslora.tools.policy import Policy

ROLES = {"system": "system", "human": "user", "ai": "assistant"}
# Room for less than this is no reply.
SHORTEST_REPLY_TOKENS = 16


class PolicyChat(BaseChatModel):
    """A policy as a chat model, greedy.

    policy: makes the policy, when the first request comes. adapter: hash of the adapter in force, None for the base;
    set it before each edit. max_tokens: longest reply.
    Raises EditorError for a request that leaves no room for a reply in the policy's context.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    policy: Callable[[], Policy]
    adapter: str | None = None
    max_tokens: int = 768

    @property
    def model_name(self) -> str:
        """Names the adapter, so that a recorded reply of one is never taken for another's."""
        return self.adapter or "base"

    @property
    def _llm_type(self) -> str:
        return "policy"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        policy = self.policy()
        dialogue = [{"role": ROLES.get(each.type, "user"), "content": str(each.text)} for each in messages]
        tokens = policy.count_tokens(dialogue)
        room = min(self.max_tokens, policy.context_tokens - tokens)
        if room < SHORTEST_REPLY_TOKENS:
            raise EditorError(
                f"The request to edit takes {tokens} of the {policy.context_tokens} tokens that {policy.name} can "
                "read, which leaves no room for a reply: show fewer failures (editing.failures) or take another editor."
            )
        generated = policy.generate([dialogue], adapter=self.adapter, max_new_tokens=room)
        reply = generated.replies[0]
        for end in filter(None, stop or ()):
            reply = reply.partition(end)[0]
        total = tokens + generated.tokens
        usage = UsageMetadata(input_tokens=tokens, output_tokens=generated.tokens, total_tokens=total)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(reply, usage_metadata=usage))])
