"""The editor "policy": the model under adaptation edits its own prompt, with the kept adapter loaded.

A small model rarely writes a whole valid document. Its replies are checked like those of any other editor, and a
failed edit costs the run only the time and compute of its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from langchain_core.messages import AIMessage, BaseMessage

from nslora.tools.editor.local_chat import LocalChat, tokens_used
from nslora.tools.errors import EditorError
from nslora.tools.policy import Policy

ROLES = {"system": "system", "human": "user", "ai": "assistant"}
SHORTEST_REPLY_TOKENS = 16  # with less room than this, the request is refused


class PolicyChat(LocalChat):
    """A policy as a LangChain chat model with greedy decoding.

    Attributes:
        policy: Loads the policy; called at the first request.
        adapter: Hash of the adapter to answer with; None for the base model. Set it before each edit.
        max_tokens: Longest reply, in tokens.
    """

    policy: Callable[[], Policy]
    adapter: str | None = None
    max_tokens: int = 768

    @property
    def model_name(self) -> str:
        """The adapter's hash, so that a reply recorded under one adapter is never reused under another."""
        return self.adapter or "base"

    @property
    def _llm_type(self) -> str:
        return "policy"

    def reply_to(self, messages: list[BaseMessage], stop: Sequence[str]) -> AIMessage:
        """Answer with the policy.

        Raises:
            EditorError: The request leaves no room for a reply in the policy's context.
        """
        policy = self.policy()
        dialogue = [{"role": ROLES.get(each.type, "user"), "content": str(each.text)} for each in messages]
        tokens = policy.count_tokens(dialogue)
        room = min(self.max_tokens, policy.context_tokens - tokens)
        if room < SHORTEST_REPLY_TOKENS:
            raise EditorError(
                f"The request to edit takes {tokens} of the {policy.context_tokens} tokens that {policy.name} can "
                "read, which leaves no room for a reply: show fewer failures (editing.max_input_tokens, or "
                "editing.failures by textgrad), or use another editor."
            )
        generated = policy.generate([dialogue], adapter=self.adapter, max_new_tokens=room)
        reply, ended = generated.replies[0], "length" if generated.truncated else "stop"
        for end in filter(None, stop):
            reply = reply.partition(end)[0]
        told = {"finish_reason": ended}
        return AIMessage(reply, usage_metadata=tokens_used(tokens, generated.tokens), response_metadata=told)
