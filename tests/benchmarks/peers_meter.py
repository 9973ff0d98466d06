"""Answers the requests of a peer in batches, and counts their compute as bench_strategies does.

Peers send single questions from many threads. One thread owns the policy and batches requests that arrive together.
Each prompt and reply is counted by the formula of tools/inference/flops.py, as if it were alone in its batch.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict

from nslora.tools.editor.policy_editor import ROLES
from nslora.tools.inference.flops import TERA, FlopRates
from nslora.tools.inference.reply_cache import token_counts
from nslora.tools.policy import Policy
from nslora.tools.schema import Dialogue, answered


@dataclass
class Meter:
    """Tokens and calls of one peer's recipe. cap_tflop: the compute that every strategy gets on the task."""

    rates: FlopRates
    cap_tflop: float
    forward_tokens: int = 0
    trained_tokens: int = 0
    requests: int = 0
    editor_calls: int = 0
    editor_tokens: int = 0  # if the policy is the editor; these are in forward_tokens too
    counting: bool = True

    @property
    def tflop(self) -> float:
        return (self.rates.forward * self.forward_tokens + self.rates.training * self.trained_tokens) / TERA

    @property
    def left_tflop(self) -> float:
        return self.cap_tflop - self.tflop

    def reply(self, tokens: int, *, edits: bool) -> None:
        """Count a prompt with its reply."""
        if self.counting:
            self.forward_tokens += tokens
            self.requests += 1
            self.editor_calls += edits
            self.editor_tokens += tokens if edits else 0

    def call_elsewhere(self) -> None:
        """Count a call of an editor that is not a language model."""
        if self.counting:
            self.editor_calls += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside: the test replies are outside the compute of every peer."""
        self.counting = False
        try:
            yield
        finally:
            self.counting = True

    def cost(self) -> dict[str, float]:
        return {
            "tflop": round(self.tflop, 3),
            "forward_tokens": self.forward_tokens,
            "trained_tokens": self.trained_tokens,
            "requests": self.requests,
            "editor_calls": self.editor_calls,
            "editor_tokens": self.editor_tokens,
        }


@dataclass
class _Request:
    dialogue: Dialogue
    max_new_tokens: int
    edits: bool
    answer: "Future[tuple[str, int]]" = field(default_factory=Future)


class Batcher:
    """Greedy replies of one policy to requests from any thread.

    wait_s: how long a batch waits for more requests. most: requests per batch.
    ahead: gives dialogues that will probably follow a single request. They join its batch, which saves most of the wait
    of a peer that asks one by one. They are counted only if the peer asks for them.
    """

    ahead: Callable[[Dialogue], Sequence[Dialogue]] | None = None

    def __init__(self, policy: Policy, meter: Meter, *, wait_s: float = 0.05, most: int = 32) -> None:
        self.policy, self.meter, self.wait_s, self.most = policy, meter, wait_s, most
        self.batches: list[int] = []
        self._known: dict[str, tuple[str, int]] = {}
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, dialogue: Dialogue, max_new_tokens: int, *, edits: bool = False) -> tuple[str, int]:
        """The reply, and the tokens of prompt and reply. Raises what the policy raises."""
        request = _Request(dialogue, max_new_tokens, edits)
        self._waiting.put(request)
        return request.answer.result()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            batch: list[_Request] = []
            try:
                while len(batch) < self.most:
                    request = self._waiting.get(timeout=self.wait_s if batch else None)
                    if request is None:
                        ended = True
                        break
                    batch.append(request)
            except queue.Empty:
                pass
            for length in sorted({each.max_new_tokens for each in batch}):
                self._answer([each for each in batch if each.max_new_tokens == length], length)

    def _answer(self, requests: Sequence[_Request], max_new_tokens: int) -> None:
        def key(dialogue: Dialogue) -> str:
            return json.dumps([max_new_tokens, list(dialogue)])

        try:
            new = {key(each.dialogue): each.dialogue for each in requests if key(each.dialogue) not in self._known}
            if len(requests) == len(new) == 1 and self.ahead is not None and not requests[0].edits:
                new |= {key(dialogue): dialogue for dialogue in self.ahead(requests[0].dialogue)}
            if new:
                dialogues = list(new.values())
                replies = self.policy.generate(dialogues, adapter=None, max_new_tokens=max_new_tokens).replies
                counts = token_counts(
                    self.policy,
                    None,
                    [answered(dialogue, reply) for dialogue, reply in zip(dialogues, replies, strict=True)],
                )
                self._known |= dict(zip(new, zip(replies, counts, strict=True), strict=True))
                self.batches.append(len(new))
        except Exception as error:  # for the threads that asked, not for this one
            for each in requests:
                each.answer.set_exception(error)
            return
        for each in requests:
            reply, count = self._known[key(each.dialogue)]
            self.meter.reply(count, edits=each.edits)
            each.answer.set_result((reply, count))


class BatchedChat(BaseChatModel):
    """The policy as a chat model for `serve_chat`. edits: whether its calls count as editor calls."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    batcher: Batcher
    max_tokens: int
    edits: bool = False

    @property
    def _llm_type(self) -> str:
        return "batched-policy"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        dialogue = [{"role": ROLES[each.type], "content": str(each.text)} for each in messages]
        reply, tokens = self.batcher.ask(dialogue, self.max_tokens, edits=self.edits)
        prompt = self.batcher.policy.count_tokens(dialogue)
        usage = UsageMetadata(
            input_tokens=prompt, output_tokens=max(tokens - prompt, 0), total_tokens=max(tokens, prompt)
        )
        return ChatResult(generations=[ChatGeneration(message=AIMessage(reply, usage_metadata=usage))])
