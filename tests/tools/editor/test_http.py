"""The editor over HTTP: a scripted server for all that servers do wrong."""

from pathlib import Path
from typing import Any

import pytest
from chat_server import ServerFaultError, serve_chat
from langchain_core.messages import AIMessage, UsageMetadata

from nslora.tools.editor.call_log import EditorLog
from nslora.tools.editor.chat_models import connect_editor
from nslora.tools.editor.editor import EditFailedError, Editor
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
    chat = connect_editor(model, base_url=base_url, timeout_s=timeout_s, transport_retries=transport_retries)
    return Editor(chat, **options)


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


@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_or_failing_server_is_asked_again_by_the_chat_models_own_settings(status: int) -> None:
    fault = ServerFaultError(status, headers={"retry-after-ms": "1"})
    with serve_chat(ScriptedChat([fault, "critique", fault, improved(NEW)])) as server:
        edit = editor(server.base_url, transport_retries=1).edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert edit.usage.calls == 2
    assert len(server.requests) == 4


FAULTS: dict[str, tuple[ServerFaultError, str]] = {
    "a wrong key": (ServerFaultError(401), "AuthenticationError.* Check its API key"),
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


def test_a_reply_that_the_token_limit_cut_off_is_asked_for_again() -> None:
    half = AIMessage(improved(NEW)[:60], response_metadata={"finish_reason": "length"})
    with serve_chat(ScriptedChat(["critique", half, improved(NEW)])) as server:
        edit = editor(server.base_url).edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert "cut off" in edit.problems[0]


def test_nobody_at_the_address_stops_the_run() -> None:
    with serve_chat(RuleEditor()) as server:
        pass
    with pytest.raises(EditorCallError, match=r"ConnectionError.* base URL"):
        editor(server.base_url).edit(OLD, [FAILURE])


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


def test_a_form_that_the_token_limit_cut_off_is_counted_and_asked_for_again() -> None:
    usage = UsageMetadata(input_tokens=100, output_tokens=7, total_tokens=107)
    half = AIMessage('{"system": "Rep', response_metadata={"finish_reason": "length"}, usage_metadata=usage)
    counted = AIMessage("critique", usage_metadata=usage)
    with serve_chat(ScriptedChat([counted, half, half, half])) as server:
        with pytest.raises(EditFailedError, match="no usable prompt in 3 replies") as caught:
            editor(server.base_url, structured="always", edit="system").edit(OLD, [FAILURE])
        assert len(server.requests) == 4
    assert (caught.value.usage.output_tokens, caught.value.usage.estimated) == (28, False)


def test_a_refusal_in_place_of_a_form_is_an_unusable_reply() -> None:
    refused = AIMessage("", additional_kwargs={"refusal": "I cannot help with that."})
    with serve_chat(ScriptedChat(["critique", refused, improved(NEW)])) as server:
        edit = editor(server.base_url, structured="always").edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert "refused" in edit.problems[0]


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
