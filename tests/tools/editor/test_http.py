"""The editor over HTTP: a scripted server for all that servers do wrong."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import ServerFaultError, serve_chat
from langchain_core.messages import AIMessage, HumanMessage, UsageMetadata
from langchain_core.runnables import RunnableWithFallbacks
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from nslora.tools.editor.call_log import EditorLog, RecordedChat
from nslora.tools.editor.calls import EditorCalls
from nslora.tools.editor.chat_models import connect_editor
from nslora.tools.editor.editor import Caps, EditFailedError, Editor
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.errors import EditorCallError
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example
from nslora.tools.testing.scripted_chat import ScriptedChat, improved

OLD = Prompt("Be brief.")
NEW = Prompt("Reply in capitals.", demonstrations=(Demonstration("Who?", "ADA"),))
FAILURE = Graded(
    Example("train-1", "Who built the mill?", "Ada", {}),
    "ada",
    Score(0.0, {"style": 0.0}, "The reply must be in capitals.\nA reply that would be right here: ADA", "ADA"),
)


def editor(
    base_url: str, model: str = "tiny-1", *, timeout_s: float = 20, transport_retries: int = 0, **options: Any
) -> Editor:
    chat = connect_editor(model, base_url=base_url, timeout_s=timeout_s)
    return Editor(chat, transport_retries=transport_retries, **options)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits before a call is made again: none, but written down."""
    waited: list[float] = []
    monkeypatch.setattr(EditorCalls, "_wait", lambda self, seconds, why: waited.append(seconds))
    return waited


def test_a_valid_edit_comes_over_http_with_its_tokens() -> None:
    usage = UsageMetadata(input_tokens=100, output_tokens=20, total_tokens=120)
    with serve_chat(ScriptedChat([AIMessage("critique", usage_metadata=usage), improved(NEW)])) as server:
        edit = editor(server.base_url).edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert edit.critiques == ("critique",)
    assert edit.usage.calls == 2
    assert edit.usage.input_tokens > 100
    assert edit.usage.estimated  # the second reply came without a count
    assert [body["model"] for _, body in server.requests] == ["tiny-1"] * 2


def test_the_rule_editor_edits_the_same_over_http_as_in_this_process() -> None:
    with serve_chat(RuleEditor()) as server:
        served = editor(server.base_url).edit(OLD, [FAILURE])
    here = Editor(RuleEditor()).edit(OLD, [FAILURE])
    assert served.prompts == here.prompts
    assert served.prompts[0].demonstrations == (Demonstration("Who built the mill?", "ADA"),)


PASSING: dict[str, tuple[ServerFaultError, list[float]]] = {
    "a rate limit": (ServerFaultError(429), [1.0]),
    "a rate limit that says how long": (ServerFaultError(429, headers={"Retry-After": "7"}), [7.0]),
    "an overloaded server": (ServerFaultError(529), [1.0]),
    "a server error": (ServerFaultError(500), [1.0]),
    "half a body": (ServerFaultError(cut_off=True), [1.0]),
    "a hang": (ServerFaultError(hangs=True), [1.0]),
}


@pytest.mark.parametrize(("fault", "waited"), PASSING.values(), ids=PASSING)
def test_a_failure_that_passes_is_asked_again_and_is_on_record(
    fault: ServerFaultError, waited: list[float], waits: list[float], tmp_path: Path
) -> None:
    log = EditorLog(tmp_path / "editor.jsonl")
    with serve_chat(ScriptedChat([fault, "critique", fault, improved(NEW)])) as server:
        edit = editor(server.base_url, transport_retries=1, timeout_s=0.5, log=log).edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert edit.usage.calls == 2
    assert waits == waited * 2
    assert len(server.requests) == 4  # the client itself tries nothing again
    again = EditorLog(tmp_path / "editor.jsonl")
    assert [(each["purpose"], each["call_failed"], each["times"]) for each in again.problems()] == [
        ("critique", True, 1),
        ("improve 1", True, 1),
    ]
    assert Editor(RecordedChat(again)).edit(OLD, [FAILURE]).prompts == (NEW,)


def test_a_failure_that_does_not_pass_is_told_with_its_tries(waits: list[float]) -> None:
    with (
        serve_chat(ScriptedChat([ServerFaultError(503)], repeat=True)) as server,
        pytest.raises(EditorCallError, match=r"\(HTTP 503\).* at each of 3 tries"),
    ):
        editor(server.base_url, transport_retries=2).edit(OLD, [FAILURE])
    assert len(server.requests) == 3
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        (ServerFaultError(429, code="insufficient_quota"), "quota is used up: add credit"),
        (ServerFaultError(429, headers={"Retry-After": "3600"}), "try again later"),
        (ServerFaultError(400, "API key not valid. Please pass a valid API key."), "Check its API key"),
        (ServerFaultError(400, "Your credit balance is too low"), "quota is used up: add credit"),
        (ServerFaultError(401), "Check its API key"),
        (ServerFaultError(404), "Check the model's name"),
    ],
)
def test_what_no_waiting_mends_stops_the_run_at_once(fault: ServerFaultError, remedy: str, waits: list[float]) -> None:
    with (
        serve_chat(ScriptedChat([fault], repeat=True)) as server,
        pytest.raises(EditorCallError, match=remedy),
    ):
        editor(server.base_url, transport_retries=2).edit(OLD, [FAILURE])
    assert (len(server.requests), waits) == (1, [])


CAPS: dict[str, tuple[Caps, float | None]] = {
    "calls": (Caps(calls=2), None),
    "tokens": (Caps(tokens=2000, reply_tokens=500), None),
    "cost": (Caps(cost=0.002, reply_tokens=500), None),
    "seconds": (Caps(), 0.9),
}


@pytest.mark.parametrize(("caps", "seconds"), CAPS.values(), ids=CAPS)
def test_a_call_is_made_again_within_the_caps_only(caps: Caps, seconds: float | None, waits: list[float]) -> None:
    """Three calls, or a reservation of about 900 tokens twice more, or one second, are more than there is."""
    prices = {"tiny-1": {"input": 1.0, "output": 1.0}}
    with serve_chat(ScriptedChat([ServerFaultError(429)], repeat=True)) as server:
        chat = connect_editor("tiny-1", base_url=server.base_url)
        calls = EditorCalls(chat, caps=caps, prices=prices, transport_retries=5)
        calls.until = None if seconds is None else time.monotonic() + seconds
        with pytest.raises(EditorCallError, match="HTTP 429"):
            calls.ask([HumanMessage("x" * 400)], "critique")
    assert len(server.requests) == (1 if seconds else 2)


def test_a_model_that_tries_again_itself_is_not_tried_again() -> None:
    fault = ServerFaultError(429, headers={"retry-after-ms": "1"})
    with serve_chat(ScriptedChat([fault], repeat=True)) as server:
        own = ChatOpenAI(model="tiny-1", base_url=server.base_url, api_key=SecretStr("none"), max_retries=1)
        for chat in (own, own.with_config(tags=["x"]), own.with_fallbacks([own])):
            asked = len(server.requests)
            with pytest.raises(EditorCallError, match="HTTP 429"):
                Editor(chat, transport_retries=5).edit(OLD, [FAILURE])
            assert len(server.requests) - asked == (4 if isinstance(chat, RunnableWithFallbacks) else 2)


FAULTS: dict[str, tuple[ServerFaultError, str]] = {
    "a wrong key": (ServerFaultError(401), r"AuthenticationError \(HTTP 401\).* Check its API key"),
    "no quota": (ServerFaultError(402), "402.* quota is used up"),
    "a forbidden model": (ServerFaultError(403), "PermissionDeniedError.* check the key and the account"),
    "a rate limit": (ServerFaultError(429, headers={"retry-after-ms": "1"}), "RateLimitError.* try again later"),
    "a server error": (ServerFaultError(500), "500.* Its server failed"),
    "a hang": (ServerFaultError(hangs=True), "[Tt]imeout.* No usable answer came"),
    "a reply cut off": (ServerFaultError(message=improved(NEW), cut_off=True), "Connection|JSON|RemoteProtocol"),
    "a web page": (ServerFaultError(page="<html>proxy</html>"), "failed with"),
    "an unknown model": (ServerFaultError(404, "no such model"), "NotFoundError.* Check the model's name"),
}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(("fault", "name"), FAULTS.values(), ids=FAULTS)
def test_a_failed_call_stops_the_run_with_what_happened_and_what_to_do(
    fault: ServerFaultError, name: str, position: int
) -> None:
    script = [*["critique"][:position], fault]
    with serve_chat(ScriptedChat(script, repeat=True)) as server:
        with pytest.raises(EditorCallError, match=name):
            editor(server.base_url, timeout_s=0.5).edit(OLD, [FAILURE])
        assert len(server.requests) == position + 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_a_server_refuses_for_its_content_is_a_failed_edit(status: int) -> None:
    chat = ScriptedChat(["critique", ServerFaultError(status, "too long")], repeat=True)
    with serve_chat(chat) as server, pytest.raises(EditFailedError, match="too long") as caught:
        editor(server.base_url).edit(OLD, [FAILURE])
    assert not caught.value.disabled


def reply(text: str = "", finish_reason: str = "stop", *, reasoning: int = 0, refusal: str = "") -> AIMessage:
    return AIMessage(
        text,
        usage_metadata=UsageMetadata(
            input_tokens=100,
            output_tokens=60,
            total_tokens=160,
            output_token_details={"reasoning": reasoning},
        ),
        response_metadata={"finish_reason": finish_reason},
        additional_kwargs={"refusal": refusal} if refusal else {},
    )


ENDED = {
    "a refusal": (reply(refusal="I cannot help with that."), "refused the request: 'I cannot help with that.'.*rows"),
    "a content filter": (reply(finish_reason="content_filter"), "content filter stopped.*look for what it filters"),
    "reasoning without an answer": (
        reply(finish_reason="length", reasoning=60),
        "spent the whole length.*60 output tokens, 60 of them for reasoning.*allow longer replies.*reason less",
    ),
    "an open think block": (reply("<think>Well,", "length"), "spent the whole length"),
    "half a document": (reply(improved(NEW)[:60], "length"), "cut off at its length limit.*allow longer replies"),
    "half a document, filtered": (reply(improved(NEW)[:60], "content_filter"), "content filter (cut off|stopped)"),
}


@pytest.mark.parametrize("structured", ["never", "always"])
@pytest.mark.parametrize(("came", "why"), ENDED.values(), ids=ENDED)
def test_a_reply_that_ended_early_says_why_and_is_not_asked_for_again(
    came: AIMessage, why: str, structured: Any, tmp_path: Path
) -> None:
    log = EditorLog(tmp_path / "editor.jsonl")
    with serve_chat(ScriptedChat([reply("critique"), came], repeat=True)) as server:
        asked = editor(server.base_url, structured=structured, log=log)
        with pytest.raises(EditFailedError, match=why) as caught:
            asked.edit(OLD, [FAILURE])
        with pytest.raises(EditFailedError, match=why):  # later, too: it is answered from the record
            asked.edit(OLD, [FAILURE])
        assert len(server.requests) == 2
    if (structured, came.response_metadata["finish_reason"]) != ("always", "content_filter"):  # that one says nothing
        assert (caught.value.usage.tokens, caught.value.usage.estimated) == (320, False)
    line = json.loads((tmp_path / "editor.jsonl").read_text().splitlines()[1])
    assert (line["finish_reason"], line["refusal"], line["error"]) == (
        came.response_metadata["finish_reason"],
        came.additional_kwargs.get("refusal", ""),
        "",
    )
    assert line["reasoning_tokens"] == (60 if "60 of them" in why else 0)
    with pytest.raises(EditFailedError) as replayed:
        Editor(RecordedChat(EditorLog(tmp_path / "editor.jsonl"), model_name="x")).edit(OLD, [FAILURE])
    assert re.search(why, str(replayed.value))
    assert replayed.value.usage.tokens == caught.value.usage.tokens


def test_a_request_that_a_filter_stops_is_not_sent_again_in_another_form() -> None:
    fault = ServerFaultError(400, "content management policy", code="content_filter")
    with serve_chat(ScriptedChat([reply("critique"), fault], repeat=True)) as server:
        with pytest.raises(EditFailedError, match=r"HTTP 400.*content management policy"):
            editor(server.base_url, structured="always").edit(OLD, [FAILURE])
        assert len(server.requests) == 2


def test_replies_without_text_and_without_a_reason_are_asked_for_again_and_named() -> None:
    with serve_chat(ScriptedChat([reply("critique"), reply()], repeat=True)) as server:
        with pytest.raises(EditFailedError, match=r"no usable prompt in 3 replies.*without any text.*reasoning parser"):
            editor(server.base_url).edit(OLD, [FAILURE])
        sent = [body["messages"] for _, body in server.requests[1:]]
    assert len({json.dumps(each) for each in sent}) == 3


def test_nobody_at_the_address_stops_the_run_at_once(waits: list[float]) -> None:
    with serve_chat(RuleEditor()) as server:
        pass
    for address in (server.base_url, "http://no-such-host.invalid/v1"):
        with pytest.raises(EditorCallError, match=r"ConnectionError.* base URL"):
            editor(address, transport_retries=2).edit(OLD, [FAILURE])
    assert waits == []


def test_structured_output_over_http_and_a_server_that_refuses_it() -> None:
    """gpt-4o's profile says that it fills in schemas; a server that only goes by that name may answer 400."""
    filled = '{"system": "Reply in capitals.", "question_template": "{question}", "demonstrations": []}'
    with serve_chat(ScriptedChat(["critique", filled])) as server:
        edit = editor(server.base_url, "gpt-4o").edit(OLD, [FAILURE])
    assert edit.prompts == (Prompt("Reply in capitals."),)
    assert "response_format" in server.requests[1][1]
    refuses = ServerFaultError(400, "response_format is not supported")
    with serve_chat(ScriptedChat(["critique", refuses, improved(NEW)])) as server:
        edit = editor(server.base_url, "gpt-4o").edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert "response_format" not in server.requests[2][1]


IGNORED = {
    "tags where a form was asked for": [improved(NEW)],
    "another object, then tags": ['{"text": "Reply in capitals."}', improved(NEW)],
    "no object, then tags": ["[1, 2]", improved(NEW)],
    "nothing, then tags": ["", improved(NEW)],
}


@pytest.mark.parametrize("replies", IGNORED.values(), ids=IGNORED)
def test_a_server_that_passes_over_the_form_is_understood_all_the_same(replies: list[str]) -> None:
    with serve_chat(ScriptedChat(["critique", *replies])) as server:
        edit = editor(server.base_url, structured="always").edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert len(edit.problems) == len(replies) - 1
    assert len(server.requests) == edit.usage.calls == len(replies) + 1
    assert all("response_format" in body for _, body in server.requests[1:])


def test_a_server_that_sends_the_key_back_gets_it_neither_recorded_nor_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-5up3r-s3cret")
    told = "Your key is canary-5up3r-s3cret."
    log = EditorLog(tmp_path / "editor.jsonl")
    with serve_chat(ScriptedChat([told, improved(NEW), ServerFaultError(401, told)])) as server:
        asked = editor(server.base_url, log=log)
        edit = asked.edit(OLD, [FAILURE])
        with pytest.raises(EditorCallError) as caught:
            asked.edit(NEW, [FAILURE])
    assert "canary-5up3r-s3cret" in server.requests[0][0]["Authorization"]
    written = (tmp_path / "editor.jsonl").read_text() + repr(edit) + repr(caught.value) + repr(server.requests[1][1])
    assert "canary" not in written
    assert "Your key is [secret]." in written
