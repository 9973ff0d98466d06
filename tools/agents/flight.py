"""Trajectories in flight: agents that run at once, each in a thread, whose calls of the policy share batches.

An agent blocks at a call. The policy answers when a batch is full or when every agent in flight waits for it; so
batches are as large as the agents allow, and no agent knows of another.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import convert_to_messages

from nslora.tools.agents.chat import PolicyChat
from nslora.tools.agents.ending import answer_in, state_of
from nslora.tools.agents.mending import Mend
from nslora.tools.agents.messages import message_of
from nslora.tools.agents.once import CURRENT, Record
from nslora.tools.errors import PromptError, TaskError, first_line
from nslora.tools.schema import Message
from nslora.tools.tasks.agent import Agent, Prompts
from nslora.tools.trajectory import ModelCall, Step, ToolCall, Trajectory

STEPS_PER_CALL = 10  # supersteps of a graph for each call that it may make: more are a loop

# What answers a batch of (dialogue, reply that is given in the place of the policy's): a call without its sections, or
# why a dialogue cannot be sent.
AnswerAll = Callable[[Sequence[tuple[list[Message], str | None]]], Sequence[ModelCall | str]]


class StoppedAgentError(Exception):
    """Ends a trajectory that may make no further call; the reason is on record already."""


@dataclass(frozen=True)
class Start:
    """What one trajectory begins with.

    Attributes:
        messages: Chat turns of the row under the prompt in force.
        question: Its question alone.
        key: Names the trajectory on disk.
        mend: A call whose reply is given; None: the policy replies to all.
    """

    messages: list[Message]
    question: str
    key: str
    mend: Mend | None = None


@dataclass
class Waiting:
    """A call that waits for the policy. given: the reply that takes the place of the policy's."""

    dialogue: list[Message]
    reads_tools: bool
    reply: Future[ModelCall]
    given: str | None = None


class Flying(BaseCallbackHandler):
    """One trajectory under way. All that is below is guarded by the flight's lock."""

    def __init__(self, agent: Agent, start: Start, prompts: Prompts, lock: threading.Condition, record: Record) -> None:
        self.agent, self.start, self.prompts, self.lock, self.record = agent, start, prompts, lock, record
        self.steps: list[Step] = []
        self.waiting: list[Waiting] = []
        self.ended: Trajectory | None = None
        self.failure = ""
        self.broken: PromptError | None = None
        self._tools: dict[UUID, tuple[str, str]] = {}
        self._asked, self._own_s, self._since = 0, 0.0, time.monotonic()
        chat = PolicyChat(call=self.call, texts=prompts)
        self.runnable = agent.make(chat, prompts)
        self.thread = threading.Thread(target=self._fly, daemon=True, name="nslora-trajectory")

    def call(self, dialogue: list[Message], reads_tools: bool) -> ModelCall:
        """Wait for the policy's reply, in the agent's thread."""
        with self.lock:
            if not self.failure and self._asked >= self.agent.spec.max_calls:
                self.fail(f"made more than {self.agent.spec.max_calls} calls of the policy (agent.max_calls)")
            if self.failure or self.ended:
                raise StoppedAgentError(self.failure)
            mend = self.start.mend
            given = mend.reply if mend and mend.call == self._asked else None
            self._asked += 1
            if not self.waiting:
                self._own_s += time.monotonic() - self._since
            waiting = Waiting(dialogue, reads_tools, Future(), given)
            self.waiting.append(waiting)
            self.lock.notify_all()
        return waiting.reply.result()

    def answer(self, said: ModelCall | str) -> None:
        """Give the oldest waiting call its reply, or the reason why there is none."""
        waiting = self.waiting.pop(0)
        if not self.waiting:
            self._since = time.monotonic()
        if isinstance(said, str):
            self.fail(said)
            waiting.reply.set_exception(StoppedAgentError(said))
            return
        _, calls = message_of(waiting.dialogue, said.reply, reads_tools=waiting.reads_tools, metadata={})
        call = replace(
            said,
            sections=tuple(self._sections_in(waiting.dialogue)),
            malformed=calls.problem,
            calls_tools=bool(calls.valid or calls.invalid),
        )
        self.steps.append(call)
        waiting.reply.set_result(call)

    def _sections_in(self, dialogue: list[Message]) -> list[str]:
        """Names of the sections whose text is in what was sent: in a turn, or in the schema of a tool."""
        sent = "\n".join(turn["content"] for turn in dialogue)
        return [
            name
            for name, text in self.prompts.items()
            if text.strip() and (text.strip() in sent or json.dumps(text, ensure_ascii=False)[1:-1] in sent)
        ]

    def fail(self, reason: str) -> None:
        """End the trajectory as failed; a thread that goes on is stopped at its next call."""
        self.failure = self.failure or reason
        for waiting in self.waiting:
            waiting.reply.set_exception(StoppedAgentError(self.failure))
        self.waiting = []
        self.ended = self.ended or Trajectory(tuple(self.steps), failure=self.failure)
        self.lock.notify_all()

    @property
    def overtime_s(self) -> float:
        """Seconds of own work beyond the limit; below 0 within it, and while the policy is at work."""
        if self.waiting:
            return -self.agent.spec.max_seconds
        return self._own_s + time.monotonic() - self._since - self.agent.spec.max_seconds

    def _fly(self) -> None:
        CURRENT.set(self.record)
        output: Any = None
        try:
            output, failure = self._invoked(), ""
        except PromptError as error:  # a section is missing: no row's fault
            failure, self.broken = str(error), error
        except BaseException as error:  # SystemExit of a user's agent must not end a run either
            failure = f"raised {type(error).__name__}: {first_line(error)}"
        with self.lock:
            if self.ended is None:
                self.ended = self._trajectory(output, failure)
            self.lock.notify_all()

    def _invoked(self) -> Any:
        given = {"messages": convert_to_messages(self.start.messages), "question": self.start.question}
        spec = self.agent.spec
        config = {
            "callbacks": [self],
            "recursion_limit": STEPS_PER_CALL * (spec.max_calls + 1),
            "configurable": {"thread_id": self.start.key},
        }
        try:
            return self.runnable.invoke(given, config)
        except TypeError as error:
            if "synchronous" not in str(error) or self.steps:  # LangGraph's word for a node that is async alone
                raise
        return asyncio.run(self.runnable.ainvoke(given, config))

    def _trajectory(self, output: Any, failure: str) -> Trajectory:
        steps = tuple(self.steps)
        if failure:
            return Trajectory(steps, failure=failure)
        try:
            state, answer = state_of(output), answer_in(output, self.agent.spec.answer)
        except Exception as error:
            return Trajectory(steps, failure=f"ended with a state that cannot be read ({first_line(error)})")
        if "__interrupt__" in state:
            return Trajectory(steps, state=state, failure="waits for a person (interrupt), and nobody can answer here")
        if answer is None:
            wanted = self.agent.spec.answer or "answer, output or messages that end with an AIMessage"
            found = ", ".join(state) or "nothing"
            failure = f"returned no answer (found: {found}; wanted: {wanted})"
        return Trajectory(steps, answer or "", state, failure)

    def on_tool_start(
        self, serialized: dict[str, Any], input_str: str, *, run_id: UUID, inputs: Any = None, **_: Any
    ) -> None:
        """Note the call of a tool."""
        given = input_str if inputs is None else json.dumps(inputs, default=str, ensure_ascii=False)
        with self.lock:
            self._tools[run_id] = (str((serialized or {}).get("name", "")), given)

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        """Put the result of a tool on record."""
        self._tool_ended(run_id, str(getattr(output, "content", output)))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """Put the error of a tool on record."""
        self._tool_ended(run_id, f"{type(error).__name__}: {error}", failed=True)

    def _tool_ended(self, run_id: UUID, result: str, *, failed: bool = False) -> None:
        with self.lock:
            name, given = self._tools.pop(run_id, ("", ""))
            self.steps.append(ToolCall(name, given, result, failed))


def fly(
    agent: Agent,
    prompts: Prompts,
    starts: Sequence[Start],
    answer_all: AnswerAll,
    on_ended: Callable[[int, Trajectory], None],
    *,
    record_of: Callable[[Start], Record],
    batch_size: int,
) -> None:
    """Run the agent on each start, many at once.

    Args:
        agent: The task's agent.
        prompts: The sections in force.
        starts: What each trajectory begins with.
        answer_all: Answers a batch of dialogues, in this thread.
        on_ended: Called with the number of a start and its trajectory, in this thread, as soon as it has ended.
        record_of: Gives the record of a trajectory's tools.
        batch_size: Calls that make a batch full.

    Raises:
        TaskError: If the agent reads a section that the prompt lacks.
        Exception: What answer_all, on_ended or `agent.make` raises; all agents in flight are stopped.
    """
    lock = threading.Condition()
    left, flying = deque(enumerate(starts)), dict[int, Flying]()
    try:
        while left or flying:
            while left and len(flying) < agent.spec.in_flight:
                number, start = left.popleft()
                flying[number] = Flying(agent, start, prompts, lock, record_of(start))
                flying[number].thread.start()
            with lock:
                _wait(lock, flying, batch_size)
                for each in flying.values():
                    if not each.ended and each.overtime_s > 0:
                        each.fail(f"worked for more than {agent.spec.max_seconds:g} s of its own (agent.max_seconds)")
                ended = {number: each.ended for number, each in flying.items() if each.ended}
                asked = [(each, waiting) for each in flying.values() for waiting in each.waiting]
                batch = asked if _ready(flying, batch_size) and not ended else []
            for number, trajectory in ended.items():
                if (broken := flying.pop(number).broken) is not None:
                    raise TaskError(str(broken)) from broken
                on_ended(number, trajectory)
            if batch:
                answers = answer_all([(waiting.dialogue, waiting.given) for _, waiting in batch])
                with lock:
                    for (each, _), said in zip(batch, answers, strict=True):
                        if each.waiting:
                            each.answer(said)
    finally:
        with lock:
            for each in flying.values():
                each.fail("was stopped with the run")


def _ready(flying: dict[int, Flying], batch_size: int) -> bool:
    """Whether a batch is full, or every agent waits for the policy."""
    waiting = sum(len(each.waiting) for each in flying.values())
    return waiting >= batch_size or all(each.waiting for each in flying.values())


def _wait(lock: threading.Condition, flying: dict[int, Flying], batch_size: int) -> None:
    """Wait until an agent has ended, a batch can be answered, or a time limit has passed."""

    def can_go_on() -> bool:
        return any(each.ended for each in flying.values()) or _ready(flying, batch_size)

    while not can_go_on():
        left_s = min(-each.overtime_s for each in flying.values() if not each.waiting)
        if left_s <= 0 or (not lock.wait(timeout=left_s) and not can_go_on()):
            return
