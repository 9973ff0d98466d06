"""The pair as a chat model in this process: a LangChain chat model with prompt and adapter in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from pydantic import PrivateAttr

from nslora.tools.editor.local_chat import LocalChat, tokens_used
from nslora.tools.errors import ModelError
from nslora.tools.export.pair import Pair
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.schema import Dialogue, Message

ROLES = {"system": "system", "human": "user", "ai": "assistant"}


class PairChat(LocalChat):
    """A run's result as a chat model: `invoke`, `stream` and their asynchronous forms, greedy.

    What it is sent is put under the prompt as an exported chat template does it: the prompt's system turn, then the
    messages' own; demonstrations; the turns; the last question in the question template. The model is loaded with the
    first request. Requests are answered one at a time.

    Attributes:
        pair: Adapter and prompt.
        device: Where to compute; None chooses by the machine.
        max_tokens: Longest reply, in tokens.
    """

    pair: Pair
    device: DeviceSettings | None = None
    max_tokens: int = 512
    _policy: LocalPolicy | None = PrivateAttr(None)
    _lock: Any = PrivateAttr(default_factory=threading.RLock)

    @property
    def _llm_type(self) -> str:
        return "nslora"

    @property
    def model_name(self) -> str:
        """The run's name."""
        return self.pair.name

    @property
    def policy(self) -> LocalPolicy:
        """The base with the adapter at hand; loaded at first use."""
        with self._lock:
            if self._policy is None:
                self._policy = self.pair.load(self.device)
            return self._policy

    def sent(self, messages: Sequence[BaseMessage]) -> list[Message]:
        """What the model is sent for these messages.

        Raises:
            ModelError: If the last one is no question of a user.
        """
        if not messages or messages[-1].type != "human":
            raise ModelError(
                f"{self.pair.name} answers a question, but the last message is "
                f"{messages[-1].type if messages else 'missing'}: end with a HumanMessage."
            )
        turns = tuple((ROLES.get(each.type, "user"), str(each.text)) for each in messages)
        return self.pair.prompt.messages(turns[-1][1], turns[:-1])

    def reply_to(self, messages: list[BaseMessage], stop: Sequence[str]) -> AIMessage:
        """Answer a chat. Raises TooLongError if it does not fit the model's context."""
        dialogue = self.sent(messages)
        with self._lock:
            made = self.policy.generate([dialogue], adapter=self.pair.adapter_name, max_new_tokens=self._room(dialogue))
        reply = made.replies[0]
        for end in filter(None, stop):
            reply = reply.partition(end)[0]
        return AIMessage(reply, usage_metadata=tokens_used(self.policy.count_tokens(dialogue), made.tokens))

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        if stop:  # a stop may span two pieces
            yield ChatGenerationChunk(message=AIMessageChunk(content=str(self.reply_to(messages, stop).content)))
            return
        dialogue = self.sent(messages)
        with self._lock:
            for text in streamed(self.policy, dialogue, self.pair.adapter_name, self._room(dialogue)):
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager:
                    run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk

    def _room(self, dialogue: Dialogue) -> int:
        """Longest reply that still fits the context, at least one token."""
        return max(1, min(self.max_tokens, self.policy.context_tokens - self.policy.count_tokens(dialogue)))


def streamed(policy: LocalPolicy, dialogue: Dialogue, adapter: str | None, max_new_tokens: int) -> Iterator[str]:
    """Yield a greedy reply piece by piece, as the model writes it; it ends early if the caller stops listening."""
    import torch
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    left = threading.Event()

    def nobody_listens(input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), left.is_set(), dtype=torch.bool, device=input_ids.device)

    ids = torch.tensor([policy.format.prompt_ids(dialogue)], device=policy.base.device)
    streamer = TextIteratorStreamer(policy.format.tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []

    def write() -> None:
        from nslora.tools.inference.generation import GREEDY

        try:
            policy.base.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                eos_token_id=list(policy.format.stop_ids),
                pad_token_id=policy.format.pad_id,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([nobody_listens]),
                **GREEDY,
            )
        except BaseException as error:
            failure.append(error)
            streamer.end()

    with policy.using(adapter):
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            left.set()
            writer.join()
    if failure:
        raise failure[0]
