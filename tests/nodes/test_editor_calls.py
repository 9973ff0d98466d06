"""Calls of an editor in whole runs: failed ones stop, take no round and are told; all of them can be traced."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_server import ServerFaultError, serve_chat
from fakes import ObedientPolicy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI
from langgraph.types import interrupt
from pydantic import SecretStr
from rich.console import Console

from nslora.graph.cli.progress import show_result
from nslora.graph.runs.run import Run
from nslora.tools.editor import call_failures
from nslora.tools.editor.calls import EditorCalls
from nslora.tools.errors import EditorCallError, ModelError
from nslora.tools.prompt import Prompt
from nslora.tools.tasks.task import Task, load_task
from nslora.tools.testing.scripted_chat import ScriptedChat, improved
from nslora.tools.testing.tiny_task import write_tiny_task

BULLETS = Prompt("Answer in one line that begins with a dash.")
TIMES = {"wall_s", "seconds", "editor_lines"}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(write_tiny_task(tmp_path / "task"))


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_failures, "WAITS_S", (0.01,))


def begin(folder: Path, task: Task, editor: Any, **settings: Any) -> Run:
    wanted = {"strategy": "textgrad", "max_rounds": 2, "reuse_replies": False, **settings}
    wanted["editing"] = {"protocol": "textgrad", **settings.get("editing", {})}  # several calls an edit
    return Run.create(folder, task=task, model=ObedientPolicy(), editor=editor, **wanted)


def answer(messages: list[BaseMessage]) -> AIMessage:
    """A critique, or an edit that depends on the request alone; 100 tokens in and 60 out, 40 of them for reasoning."""
    critique = "gradient (feedback) engine" in str(messages[0].text)
    prompt = BULLETS if "Earlier edit" in str(messages[-1].text) else Prompt("Be worse.")
    text = "Ask for a dash." if critique else improved(prompt)
    usage = UsageMetadata(input_tokens=100, output_tokens=60, total_tokens=160, output_token_details={"reasoning": 40})
    return AIMessage(text, usage_metadata=usage)


def plain(state: Any) -> str:
    """A state without clocks."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(each) for name, each in value.items() if name not in TIMES}
        return [clean(each) for each in value] if isinstance(value, list) else value

    return json.dumps(clean(dict(state)), sort_keys=True)


class StatusError(Exception):
    def __init__(self, status: int, said: str = "no") -> None:
        super().__init__(said)
        self.status_code = status


FAILURES: dict[str, Exception] = {
    "401": StatusError(401),
    "403": StatusError(403),
    "404": StatusError(404),
    "429, quota used up": StatusError(429, "insufficient_quota"),
    "429 at each try": StatusError(429),
    "connection refused": ConnectionRefusedError("[Errno 111] Connection refused"),
    "a time-out at each try": TimeoutError("late"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """The last state of a run of so many rounds whose editor never failed."""

    @cache
    def state(rounds: int) -> str:
        folder = tmp_path_factory.mktemp("whole")
        task = load_task(write_tiny_task(folder / "task"))
        run = begin(folder / "run", task, ScriptedChat([answer], repeat=True), max_rounds=rounds)
        run.adapt()
        assert run.report()["editor_problems"] == []
        return plain(run.state())

    return state


@pytest.mark.parametrize(("name", "first"), [*((name, 0) for name in FAILURES), ("401", 6)])
def test_a_run_stopped_by_a_failed_call_goes_on_and_ends_as_one_that_never_failed(
    tmp_path: Path, task: Task, whole: Callable[[int], str], name: str, first: int
) -> None:
    """first: calls that succeed before; with 6, the second edit is half done."""
    failure, rounds = FAILURES[name], 1 + first // 5
    chat = ScriptedChat([*[answer] * first, *[failure] * 3, answer], repeat=True)
    stopped = begin(tmp_path / "run", task, chat, max_rounds=rounds)
    with pytest.raises(EditorCallError, match=r"resume the run; no round was counted.* nslora resume "):
        stopped.adapt()
    before = stopped.state()
    assert before is not None
    assert (len(before["rounds"]), before["editor_failures"]) == (first // 5, 0)
    assert before["signal"]["textgrad"]["tries"] == first // 5
    good = ScriptedChat([answer], repeat=True)
    Run.open(tmp_path / "run", task=task, model=ObedientPolicy(), editor=good).resume()
    assert plain(stopped.state()) == whole(rounds)
    (problem,) = stopped.report()["editor_problems"]
    assert (problem["call_failed"], problem["status"]) == (True, getattr(failure, "status_code", None))
    assert (problem["round"], problem["purpose"]) == (rounds, "improve 1" if first else "critique")
    assert problem["times"] == (3 if "at each" in name else 1)


def test_the_last_block_of_a_run_says_what_failed_how_often_and_why(tmp_path: Path, task: Task) -> None:
    refused = AIMessage("", additional_kwargs={"refusal": "I cannot help with that."})
    chat = ScriptedChat([StatusError(503, "[overloaded]"), StatusError(503, "[overloaded]"), answer, refused])
    begun = begin(tmp_path / "run", task, chat, max_rounds=1)
    begun.adapt()
    console = Console(width=1000, record=True, markup=False, quiet=True)
    report = begun.report()
    with console.capture() as shown:
        console.quiet = False
        show_result(console, begun.folder, report)
    lines = [line for line in shown.get().splitlines() if line.startswith("editor ")]
    assert len(lines) == 2
    assert (
        "round 1, critique, 2 times: The editor scripted failed with StatusError (HTTP 503): [overloaded]" in lines[0]
    )
    assert "round 1, critique, once: The editor scripted refused the request: 'I cannot help with that.'" in lines[1]
    assert report["rounds"][0]["error"].startswith("The editor scripted refused the request")


def test_a_refusal_at_every_edit_is_given_up_after_patience_and_a_failed_call_is_not(
    tmp_path: Path, task: Task
) -> None:
    refused = AIMessage("", additional_kwargs={"refusal": "No."})
    begun = begin(
        tmp_path / "run",
        task,
        ScriptedChat([refused], repeat=True),
        max_rounds=5,
        editing={"patience": 2},
        signal={"textgrad_patience": 100},
    )
    begun.adapt()
    state = begun.state()
    assert state is not None
    assert (len(state["rounds"]), state["editor_failures"]) == (2, 2)


def test_an_editor_given_by_name_is_asked_for_one_token_before_anything_is_written(tmp_path: Path, task: Task) -> None:
    with serve_chat(ScriptedChat([answer], repeat=True)) as server:
        begun = begin(tmp_path / "run", task, "tiny-1", editor_base_url=server.base_url, max_rounds=1)
        body = server.requests[0][1]
        assert len(server.requests) == 1
        assert body.get("max_completion_tokens", body.get("max_tokens")) == 1
        begun.adapt()
        assert all("max_completion_tokens" not in body and "max_tokens" not in body for _, body in server.requests[1:])
    cost = begun.report()["cost"]
    assert (cost["editor_check_tokens"], cost["editor_calls"], cost["editor_tokens"]) == (160, 5, 960)
    assert begun.replay(tmp_path / "again").same
    fails = {"wrong key": ServerFaultError(401, "bad key"), "unknown model": ServerFaultError(404, "no such model")}
    for name, fault in fails.items():
        with serve_chat(ScriptedChat([fault], repeat=True)) as server:
            with pytest.raises(ModelError, match=r"HTTP 40[14]\).*--no-check-editor") as caught:
                begin(tmp_path / name, task, "tiny-1", editor_base_url=server.base_url)
            assert "resume" not in str(caught.value)
            assert not (tmp_path / name).exists()
            begin(tmp_path / name, task, "tiny-1", editor_base_url=server.base_url, check_editor=False)
            assert len(server.requests) == 1


def test_a_server_that_refuses_so_short_a_reply_has_answered(tmp_path: Path, task: Task) -> None:
    """OpenAI's reasoning models answer 400 to a limit that is too short for their reasoning."""
    with serve_chat(ScriptedChat([ServerFaultError(400, "max_tokens is too low"), answer], repeat=True)) as server:
        begun = begin(tmp_path / "run", task, "tiny-1", editor_base_url=server.base_url, max_rounds=1)
        assert len(server.requests) == 1
        begun.adapt()
    assert begun.report()["editor_problems"] == []


@pytest.mark.parametrize("settings", [{"editing": {"max_calls": 0}}, {"editing": {"max_tokens": 0}}])
def test_a_cap_that_holds_no_call_holds_no_check(tmp_path: Path, task: Task, settings: dict[str, Any]) -> None:
    with serve_chat(ScriptedChat([])) as server:
        begin(tmp_path / "run", task, "tiny-1", editor_base_url=server.base_url, **settings)
        assert server.requests == []


def test_objects_and_what_answers_in_this_process_are_not_asked(tmp_path: Path, task: Task) -> None:
    chat = ScriptedChat([])
    for number, editor in enumerate([chat, "rules", "policy"]):
        begin(tmp_path / f"run{number}", task, editor)
    assert chat.requests == []


class AsyncPerson(ScriptedChat):
    """A chat model without synchronous calls that asks a person for critiques, by LangGraph's interrupt."""

    def _generate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    async def _agenerate(self, messages: Any, *_: Any, **__: Any) -> Any:
        if "gradient (feedback) engine" in str(messages[0].text):
            said = AIMessage(interrupt("What is wrong?"))
            return ChatResult(generations=[ChatGeneration(message=said)])
        return ScriptedChat._generate(self, messages)


def test_a_chat_model_that_is_async_only_is_traced_and_may_ask_a_person(tmp_path: Path, task: Task) -> None:
    chat = AsyncPerson([answer], repeat=True)
    begun = begin(tmp_path / "run", task, chat, max_rounds=1, editing={"failures": 1})
    list(begun.stream(["updates"]))
    assert begun.question() == "What is wrong?"
    parts = [part for _, part in begun.stream(["messages"], answer="Ask for a dash.")]
    assert [(str(said.text), meta["purpose"]) for said, meta in parts] == [
        ("Ask for a dash.", "critique"),
        (str(answer([HumanMessage("")]).text), "improve 1"),
    ]
    assert begun.report()["rounds"][0]["error"] is None


def test_waiting_for_another_try_ends_when_the_run_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_failures, "WAITS_S", (60.0,))

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt(what)

    calls = EditorCalls(ScriptedChat([StatusError(429)], repeat=True), transport_retries=1)
    calls.on_wait = stop
    with pytest.raises(KeyboardInterrupt, match=r"try 1 failed \(429\), the editor is asked again in 60 s"):
        calls.ask([HumanMessage("Hello.")], "critique")


class Spans(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_chat_model_start(self, *_: Any, tags: Any, metadata: Any, name: str, **__: Any) -> None:
        self.seen.append({"name": name, "tags": tags, **metadata})


@pytest.mark.parametrize("structured", ["never", "always"])
def test_calls_can_be_traced_and_count_the_same_in_every_stream_mode(
    tmp_path: Path, task: Task, structured: str
) -> None:
    spans = Spans()
    counted, messages = {}, []

    def fields(asked: list[BaseMessage]) -> AIMessage:
        said = answer(asked)
        if "<IMPROVED" in said.text and structured == "always":
            form = {"system": BULLETS.system, "question_template": "{question}", "demonstrations": []}
            return said.model_copy(update={"content": json.dumps(form)})
        return said

    with serve_chat(ScriptedChat([fields], repeat=True)) as server:
        for mode in ("updates", "messages"):
            chat = ChatOpenAI(
                model="tiny-1", base_url=server.base_url, api_key=SecretStr("none"), callbacks=[spans], max_retries=0
            )
            begun = begin(tmp_path / mode, task, chat, max_rounds=1, editing={"structured": structured})
            parts = [part for _, part in begun.stream([mode])]  # type: ignore[list-item]
            messages += parts if mode == "messages" else []
            (record,) = begun.report()["rounds"]
            counted[mode] = {name: record["editor"][name] for name in ("calls", "input_tokens", "output_tokens")}
            lines = [json.loads(line) for line in (begun.folder / "editor.jsonl").read_text().splitlines()]
            assert {(each["finish_reason"], each["reasoning_tokens"]) for each in lines} == {("stop", 40)}
            assert not record["editor"]["estimated"]
    assert counted["updates"] == counted["messages"] == {"calls": 5, "input_tokens": 500, "output_tokens": 300}
    assert [span["purpose"] for span in spans.seen] == [*["critique"] * 4, "improve 1"] * 2
    assert all(span["round"] == 1 and {"nslora", "editor"} <= set(span["tags"]) for span in spans.seen)
    assert spans.seen[0]["name"] == "editor: critique"
    assert any(body.get("stream") for _, body in server.requests)
    said = {(meta["langgraph_node"], meta["purpose"], meta["round"]) for _, meta in messages}
    assert said == {("textgrad_edit", "critique", 1), ("textgrad_edit", "improve 1", 1)}
    critiques = "".join(str(message.text) for message, meta in messages if meta["purpose"] == "critique")
    assert critiques == "Ask for a dash." * 4
