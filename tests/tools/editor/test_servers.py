"""The editor on real servers: transformers' own and llama.cpp's, processes of their own with real weights."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import ObedientPolicy

from nslora.graph.runs.run import Run
from nslora.tools.editor.call_log import EditorLog, RecordedChat
from nslora.tools.editor.chat_models import connect_editor
from nslora.tools.editor.editor import EditFailedError, Editor
from nslora.tools.errors import EditorCallError
from nslora.tools.inference.weights import convert_embedded, embedded_gguf
from nslora.tools.prompt import Demonstration, Prompt, difference
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example
from nslora.tools.tasks.task import load_task
from nslora.tools.testing.tiny_task import write_tiny_task

OLD = Prompt("Be brief.", demonstrations=(Demonstration("Who built the bridge?", "BO"),))
FAILURE = Graded(
    Example("train-1", "Who built the mill?", "Ada", {}),
    "ada",
    Score(0.0, {"style": 0.0}, "The reply must be in capitals.\nA reply that would be right here: ADA", "ADA"),
)

TRANSFORMERS = "from transformers.cli.transformers import main; main()"
# Ends when its standard input is closed, so that it outlives no test run.
LLAMA_CPP = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.n_ctx, params.n_parallel = 4096, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Serving:
    """A server as a process of its own."""

    base_url: str
    process: subprocess.Popen[bytes]
    log: Path

    def chat(self, model: str, *, tokens: int, timeout_s: float = 600) -> Any:
        """The chat model that a user would connect, with short and greedy replies.

        transformers' server closes a connection some time after it answered 500 on it. A request that takes it from the
        client's pool is lost and sent again, as by the default of two transport retries; `editor_of` has one.
        """
        chat: Any = connect_editor(model, base_url=self.base_url, timeout_s=timeout_s)
        return chat.model_copy(update={"max_tokens": tokens, "temperature": 0.0})


def editor_of(chat: Any, **options: Any) -> Editor:
    return Editor(chat, transport_retries=1, **options)


@contextmanager
def serving(log: Path, command: Callable[[int], list[str]]) -> Iterator[Serving]:
    """Start a server offline on a free port, wait until it answers, and stop it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", *command(port)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", process, log)
        yield Serving(f"http://127.0.0.1:{port}/v1", process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            threading.Event().wait(0.1)
    raise TimeoutError(f"no answer from {address}")


pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`transformers serve`, from the extra `serving`; the last test of the module that takes it kills it."""
    command = [TRANSFORMERS, "serve", "--host", "127.0.0.1", "--device", "cpu", "--port"]
    with serving(tmp_path_factory.mktemp("transformers") / "serve.log", lambda port: [*command, str(port)]) as server:
        yield server


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """llama.cpp's server, from the extra `llamacpp`, with the embedded model as it lies in its wheel."""
    gguf = embedded_gguf()
    assert gguf is not None, "pip install 'nslora[embedded]'"
    command = [LLAMA_CPP, str(gguf)]
    with serving(tmp_path_factory.mktemp("llama") / "serve.log", lambda port: [*command, str(port)]) as server:
        yield server


def test_the_embedded_model_edits_a_prompt_on_llama_cpps_server(llama_cpp: Serving, tmp_path: Path) -> None:
    """A whole edit: critique, form, document, checks. What 135M parameters write is valid, and rarely good."""
    log = EditorLog(tmp_path / "editor.jsonl")
    editor = editor_of(llama_cpp.chat("smollm2", tokens=120), log=log, edit="system", structured="always")
    edit = editor.edit(OLD, [FAILURE])
    new = edit.prompts[0]
    assert new.system not in ("", OLD.system)
    assert (new.template, new.demonstrations) == (OLD.template, OLD.demonstrations)
    assert f"+{new.system.splitlines()[0]}" in difference(OLD, new)
    assert edit.critiques[0].strip()
    assert edit.usage.calls == len(log) >= 2
    assert edit.usage.input_tokens > 1000
    assert not edit.usage.estimated  # the server counts tokens
    again = Editor(RecordedChat(tmp_path / "editor.jsonl"), edit="system").edit(OLD, [FAILURE])
    assert (again.prompts, again.usage.tokens) == (edit.prompts, edit.usage.tokens)


def test_a_run_measures_what_a_real_editor_proposes_and_keeps_only_what_helps(
    llama_cpp: Serving, tmp_path: Path
) -> None:
    task = load_task(write_tiny_task(tmp_path / "task"))
    chat = llama_cpp.chat("smollm2", tokens=120)
    begun = Run.create(
        tmp_path / "run",
        task=task,
        model=ObedientPolicy(),
        editor=chat,
        strategy="textgrad",
        max_rounds=1,
        reuse_replies=False,
        editing={"edit": "system", "structured": "always", "failures": 1},
    )
    begun.adapt()
    state = begun.state()
    assert state is not None
    assert state["status"] == "finished"
    record = state["rounds"][0]
    assert record["error"] is None
    assert record["candidate"]["prompt"] != state["start"]["prompt"]
    assert record["editor"]["calls"] >= 1
    assert record["kept"] == (record["reward_after"] > record["reward_before"])


def test_a_request_beyond_the_servers_context_is_a_failed_edit(llama_cpp: Serving) -> None:
    long = Prompt("Be brief. " * 3000)
    with pytest.raises(EditFailedError, match=r"InvalidRequestError.*exceeds the available context") as caught:
        editor_of(llama_cpp.chat("smollm2", tokens=8), edit="system").edit(long, [FAILURE])
    assert caught.value.usage.calls == 1
    assert not caught.value.disabled


def test_a_random_model_gives_a_recorded_failure(
    transformers_serve: Serving, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """What a random model writes is never a document; each reply ends at the token limit."""
    log = EditorLog(tmp_path / "editor.jsonl")
    with pytest.raises(
        EditFailedError, match=r"no usable prompt|no critique|cut off at its length|spent the whole length"
    ) as caught:
        editor_of(transformers_serve.chat(str(tiny_folder()), tokens=8), log=log, retries=1).edit(OLD, [FAILURE])
    usage = caught.value.usage
    assert usage.calls == len(log) >= 1
    assert not usage.estimated
    assert 0 < usage.output_tokens <= 8 * usage.calls


def test_a_model_that_the_server_does_not_have_stops_the_run(transformers_serve: Serving, tmp_path: Path) -> None:
    with pytest.raises(EditorCallError, match=r"InternalServerError|NotFoundError|OpenAI"):
        editor_of(transformers_serve.chat(str(tmp_path / "nothing"), tokens=8), retries=0).edit(OLD, [FAILURE])


@pytest.mark.skipif(embedded_gguf() is None, reason="pip install 'nslora[embedded]'")
def test_the_embedded_model_without_forms_edits_or_fails_with_a_record(
    transformers_serve: Serving, tmp_path: Path
) -> None:
    """transformers' server answers 422 to a form, so the editor is asked for tags, which 135M parameters got right in
    no setting that was tried: then the reason is told, and the old prompt is whole.
    """
    log = EditorLog(tmp_path / "editor.jsonl")
    before, problem, proposed = OLD.render(), "", ()
    try:
        edit = editor_of(
            transformers_serve.chat(str(convert_embedded()), tokens=24),
            log=log,
            retries=0,
            edit="system",
            structured="always",
        ).edit(OLD, [FAILURE])
        usage, proposed = edit.usage, edit.prompts
    except EditFailedError as error:
        usage, problem = error.usage, str(error)
    assert "no usable prompt" in problem or "cut off at its length" in problem or (proposed and OLD not in proposed)
    assert OLD.render() == before
    assert usage.calls == len(log) >= 2
    assert usage.input_tokens > 500
    assert not usage.estimated


def test_a_server_that_hangs_stops_the_run_and_answers_again_later(
    transformers_serve: Serving, tiny_folder: Callable[..., Path]
) -> None:
    transformers_serve.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(EditorCallError, match=r"[Tt]imeout"):
            editor_of(transformers_serve.chat(str(tiny_folder()), tokens=8, timeout_s=0.5)).edit(OLD, [FAILURE])
    finally:
        transformers_serve.process.send_signal(signal.SIGCONT)
    with pytest.raises(
        EditFailedError, match=r"no usable prompt|no critique|cut off at its length|spent the whole length"
    ):
        editor_of(transformers_serve.chat(str(tiny_folder()), tokens=8), retries=0).edit(OLD, [FAILURE])


def test_a_server_that_dies_in_the_middle_of_a_reply_stops_the_run(
    transformers_serve: Serving, tiny_folder: Callable[..., Path]
) -> None:
    chat = transformers_serve.chat(str(tiny_folder()), tokens=100_000)
    seen = requests_seen(transformers_serve)
    killer = threading.Thread(target=kill_at_the_next_request, args=(transformers_serve, seen))
    killer.start()
    with pytest.raises(EditorCallError, match=r"Connection|RemoteProtocol"):
        editor_of(chat, retries=0).edit(OLD, [FAILURE])
    killer.join()
    assert requests_seen(transformers_serve) == seen + 1


def requests_seen(server: Serving) -> int:
    return server.log.read_bytes().count(b"Request received")


def kill_at_the_next_request(server: Serving, seen: int) -> None:
    deadline = time.monotonic() + 60
    while requests_seen(server) == seen and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    server.process.kill()
