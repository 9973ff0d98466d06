"""Trajectories: shared batches, limits, failures with a reason, records that call neither model nor tools."""

import threading
import time
from pathlib import Path
from typing import Any

import agent_fakes
import pytest
from agent_fakes import CALLED, AgentPolicy, make_agent, write_agent_task
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph

from nslora.tools.agents.once import once
from nslora.tools.agents.running import run_agent
from nslora.tools.errors import TaskError
from nslora.tools.evaluation.rollouts import ask
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policy import Sampling
from nslora.tools.tasks.task import Task, load_task, task_from_rows

ROWS = [{"question": f"Who keeps the {place}?", "reference": "ok"} for place in agent_fakes.PLACES]


def task_of(make: Any, **spec: Any) -> Task:
    splits = {"train": ROWS[:6], "validation": ROWS[6:9], "test": ROWS[9:]}
    prompt = "# Question template\n\n{question}\n\n# Section researcher\n\ndash\n\n# Section look_up\n\nTells."
    return task_from_rows(**splits, agent={"make": make, **spec}, prompt=prompt, max_new_tokens=12)


@pytest.fixture
def policy(tmp_path: Path) -> AgentPolicy:
    CALLED.clear()
    return AgentPolicy(tmp_path / "adapters")


def test_agents_in_flight_share_batches_and_a_known_trajectory_calls_nobody(
    policy: AgentPolicy, tmp_path: Path
) -> None:
    task, cache = task_of(make_agent, in_flight=16), ReplyCache(tmp_path / "replies.sqlite")
    rows = (*task.train, *task.validation, *task.test)
    flown = run_agent(policy, cache, task, task.prompt, rows, adapter=None)
    assert policy.batches == [12, 12]  # all agents wait, and each calls twice
    assert len(CALLED) == 12
    first = flown.trajectories[0]
    assert (first.answer, first.failure, [each.result for each in first.tools_used]) == ("- ok", "", ["ok"])
    assert [call.sections for call in first.calls] == [("researcher", "look_up")] * 2
    assert "Tells." in first.calls[0].dialogue[0]["content"]  # the section describes the tool
    assert flown.tokens > 0
    assert flown.forward_tokens == sum(call.forward_tokens for each in flown.trajectories for call in each.calls)
    again = run_agent(policy, cache, task, task.prompt, rows, adapter=None)
    assert (again.trajectories, again.tokens, again.cached) == (flown.trajectories, 0, 12)
    assert (len(policy.batches), len(CALLED)) == (2, 12)
    drawn = run_agent(policy, cache, task, task.prompt, rows[:2], adapter=None, sampling=Sampling(1.0, 2))
    assert [each.answer for each in drawn.trajectories] == ["- ok", "- no"]  # no greedy reply was taken for a sample
    assert len(policy.batches) == 4


def test_a_plain_task_is_an_agent_of_one_call(policy: AgentPolicy, tmp_path: Path) -> None:
    task = task_of(lambda chat, prompts: RunnableLambda(lambda state: chat.invoke(state["messages"])))
    cache = ReplyCache(tmp_path / "replies.sqlite")
    flown = run_agent(policy, cache, task, task.prompt, task.train, adapter=None)
    dialogues = [task.prompt.dialogue(row) for row in task.train]
    replies = ask(policy, cache, dialogues, adapter=None, max_new_tokens=task.max_new_tokens)
    assert replies.texts == flown.replies.texts
    assert (replies.cached, replies.forward_tokens) == (len(dialogues), flown.forward_tokens)


def loops(chat: Any, state: Any) -> Any:
    while True:
        chat.invoke("again")


def swallows(chat: Any, state: Any) -> Any:
    try:
        return loops(chat, state)
    except Exception:
        return "an answer all the same"


def asks_a_person(chat: Any, state: Any) -> Any:
    return {"__interrupt__": ["?"]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda chat, state: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda chat, state: (_ for _ in ()).throw(SystemExit(3)), "raised SystemExit: 3"),
        (loops, "made more than 2 calls of the policy (agent.max_calls)"),
        (swallows, "made more than 2 calls of the policy (agent.max_calls)"),
        (lambda chat, state: time.sleep(2), "worked for more than 0.2 s of its own (agent.max_seconds)"),
        (
            lambda chat, state: {"messages": [], "found": 1},
            "returned no answer (found: messages, found; wanted: answer",
        ),
        (lambda chat, state: AIMessage(" "), "returned no answer"),
        (lambda chat, state: chat.invoke("word " * 99_990), "tokens, and the context leaves 99988 beside the reply"),
        (asks_a_person, "waits for a person (interrupt)"),
    ],
)
def test_an_agent_that_fails_is_a_row_with_a_reason(policy: AgentPolicy, body: Any, reason: str) -> None:
    def make(chat: Any, prompts: Any) -> Any:
        return RunnableLambda(lambda state: body(chat, state))

    task = task_of(make, max_calls=2, max_seconds=0.2)
    flown = run_agent(policy, None, task, task.prompt, task.train[:2], adapter=None)
    assert {reason in each.failure for each in flown.trajectories} == {True}, flown.trajectories[0].failure
    assert flown.replies.texts == ("", "")


def test_an_agent_of_async_nodes_and_one_that_calls_several_times_at_once_are_run(policy: AgentPolicy) -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await held[0].ainvoke(state["messages"])]}

    def asynchronous(chat: Any, prompts: Any) -> Any:
        held[:] = [chat]
        graph = StateGraph(MessagesState)
        graph.add_node("node", node)
        graph.add_edge(START, "node")
        return graph.compile()

    def several(chat: Any, prompts: Any) -> Any:
        return RunnableLambda(lambda state: " ".join(each.text for each in chat.batch([state["messages"]] * 3)))

    held: list[Any] = []
    for make, calls in ((asynchronous, 1), (several, 3)):
        task = task_of(make)
        (done,) = run_agent(policy, None, task, task.prompt, task.train[:1], adapter=None).trajectories
        assert (done.failure, len(done.calls)) == ("", calls)
        assert done.answer.count("</tool_call>") == calls  # without tools a reply is text


def test_an_agent_that_cannot_be_made_is_one_sentence(policy: AgentPolicy) -> None:
    for make, part in (
        (lambda chat, prompts: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda chat, prompts: prompts["absent"], "reads the section 'absent', which the prompt lacks"),
        (lambda chat, prompts: "text", "is a str: make_agent must return a Runnable"),
        (lambda chat, prompts: chat.invoke("now"), "calls the model while it is made"),
    ):
        task = task_of(make)
        with pytest.raises(TaskError, match=part):
            run_agent(policy, None, task, task.prompt, task.train, adapter=None)
    with pytest.raises(TaskError, match="cannot be called with a chat model and prompts"):
        task_of(lambda chat: chat)


def test_a_failure_of_the_policy_ends_all_agents(policy: AgentPolicy) -> None:
    task, before = task_of(make_agent), set(threading.enumerate())

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("no server")

    policy.generate = broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no server"):
        run_agent(policy, None, task, task.prompt, task.train, adapter=None)
    deadline = time.monotonic() + 5
    while any(each.name == "nslora-trajectory" for each in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline
        time.sleep(0.01)


SENT: list[str] = []


@once
def send(text: str) -> str:
    SENT.append(text)
    if len(SENT) == 2:
        raise KeyboardInterrupt  # stands for a kill: no result is on record
    return f"sent {text}"


def sends(chat: Any, prompts: Any) -> Any:
    return RunnableLambda(lambda state: f"{send('a')} {send(state['question'])} {chat.invoke('?').text}")


def test_a_tool_that_must_not_be_repeated_gives_its_recorded_result(policy: AgentPolicy, tmp_path: Path) -> None:
    task, cache = task_of(sends), ReplyCache(tmp_path / "replies.sqlite")
    SENT.clear()
    (row,) = task.train[:1]
    first = run_agent(policy, cache, task, task.prompt, [row], adapter=None).trajectories[0]
    assert first.failure.startswith("raised KeyboardInterrupt")
    with cache._connect() as connection:  # the trajectory did not end before the kill
        connection.execute("DELETE FROM replies WHERE reply LIKE '%steps%'")
    again = run_agent(policy, cache, task, task.prompt, [row], adapter=None).trajectories[0]
    assert "must not be repeated: find out what it did" in again.failure
    assert ["a", row.question] == SENT  # neither was sent twice
    assert send("outside of a run") == "sent outside of a run"


def test_the_agent_is_part_of_the_tasks_hash_and_a_plain_hash_stays(tmp_path: Path) -> None:
    plain = {"train": ROWS[:6], "validation": ROWS[6:9], "test": ROWS[9:]}
    assert task_from_rows(**plain).hash == "2e7ac1affd27b3d9737338479f4aeb90b0422414718db06798f79cef68275c03"
    task = load_task(write_agent_task(tmp_path / "task"))
    assert task.agent is not None
    assert task.agent.make.__name__ == "make_agent"
    hashes = {task_of(make_agent, **spec).hash for spec in ({}, {"max_calls": 3}, {"samples": 0}, {"in_flight": 2})}
    assert len(hashes) == 3  # how many are in flight decides nothing
