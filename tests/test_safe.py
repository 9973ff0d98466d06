"""Nothing in a run's files runs code or holds a secret."""

import os
import pickle
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from fakes import FakePolicy
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_POS_ARGS, JsonPlusSerializer
from langsmith import run_trees
from langsmith.utils import get_env_var
from pydantic import Field

from nslora.graph.runs.checkpoints import CHECKPOINTS_FILE
from nslora.graph.runs.run import Run
from nslora.tools.editor.redaction import SECRET_MARK, scrub, secrets_of
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.errors import SettingsError
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.workspace import Lab, register

CANARY = "sk-canary-4f1d0c9b7a6e5d4c3b2a"
ADDRESS = f"postgresql://nslora:{CANARY}@127.0.0.1:1/none"


def crafted(proof: Path) -> list[tuple[str, bytes]]:
    """Rows that would run `touch` if they were read as the default serialiser reads them."""
    call = ormsgpack.packb(("os", "system", (f"touch {proof}",)))

    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {proof}",)

    constructor = ormsgpack.packb({"status": ormsgpack.Ext(EXT_CONSTRUCTOR_POS_ARGS, call)})
    as_json = (b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["touch ' + str(proof).encode()
               + b'"]}')
    return [("msgpack", constructor), ("pickle", pickle.dumps(Bomb())), ("json", as_json)]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_crafted_checkpoint_runs_no_code(finished: Run, tmp_path: Path, kind: int) -> None:
    proof = tmp_path / "proof"
    name, blob = crafted(proof)[kind]
    path = tmp_path / CHECKPOINTS_FILE
    with sqlite3.connect(finished.folder / CHECKPOINTS_FILE) as source, sqlite3.connect(path) as target:
        source.backup(target)
        target.execute("UPDATE checkpoints SET type = ?, checkpoint = ?", (name, blob))
        target.execute("UPDATE writes SET type = ?, value = ?", (name, blob))
    run = Run(finished.folder, finished.lab)
    run.folder = tmp_path
    for read in (run.state, run.question):
        with suppress(Exception):       # whether it is refused or read as plain data is not the point
            read()
    assert not proof.exists()


def test_the_crafted_row_would_run_code_under_langgraphs_own_default(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    JsonPlusSerializer().loads_typed(crafted(proof)[0])
    assert proof.exists()


class KeyedEditor(RuleEditor):
    """An editor that holds a key and names it in its errors, as careless providers do."""

    api_key: str = CANARY
    headers: dict[str, str] = {"Authorization": f"Bearer {CANARY}"}     # noqa: RUF012
    fails: bool = False

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise ConnectionError(f"401 for key {CANARY} at https://me:{CANARY}@host/v1?key={CANARY}")
        return super()._generate(*args, **kwargs)


@pytest.mark.parametrize("fails", [False, True])
def test_no_file_of_a_run_and_no_word_on_the_screen_holds_a_key(
        begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture, fails: bool) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    begun = begin(max_rounds=1, strategy="textgrad")
    lab = register(Lab(begun.folder.resolve(), begun.lab.settings, begun.lab.task,
                       editor_chat=KeyedEditor(fails=fails)))
    run = Run(begun.folder, lab)
    error = run.adapt()["rounds"][0]["error"]
    assert bool(error) is fails
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err + caplog.text
    holding = [path for path in run.folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert holding == []


def test_a_databases_password_is_written_nowhere(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nslora.graph.runs.checkpoints.CONNECT_TIMEOUT_S", 1)
    run = begin(checkpoints=ADDRESS)
    with pytest.raises(Exception, match="does not answer") as caught:
        run.adapt()
    assert CANARY not in str(caught.value)
    assert all(CANARY.encode() not in path.read_bytes() for path in run.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("address", [f"http://me:{CANARY}@host/v1", f"https://host/v1?key={CANARY}"])
def test_an_editors_address_with_a_key_in_it_is_refused_without_showing_it(begin: Callable[..., Run], tmp_path: Path,
                                                                         address: str) -> None:
    with pytest.raises(SettingsError, match="must hold no user, password or query") as caught:
        begin(editor="some-model", editor_base_url=address)
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown
    assert not (tmp_path / "run").exists()


def test_tensors_are_kept_as_safetensors_alone(finished: Run) -> None:
    suffixes = {path.suffix for path in finished.folder.rglob("*") if path.is_file() and path.name[0] != "."}
    assert suffixes <= {".json", ".jsonl", ".md", ".safetensors", ".sqlite", ".sqlite-shm", ".sqlite-wal"}


@pytest.fixture
def langsmith_server() -> Iterator[tuple[str, list[bytes]]]:
    """An address that takes whatever is sent to it, and what it got."""
    got: list[bytes] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.path.encode() + self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(202)
            self.end_headers()

        do_PATCH = do_POST      # noqa: N815 -- the name that http.server looks for

        def log_message(self, *_: Any) -> None:
            """Nothing: the test looks at what came."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()


@pytest.mark.parametrize("wanted", [False, True])
def test_traces_are_sent_where_the_environment_asks_for_them_and_nowhere_else(
        langsmith_server: tuple[str, list[bytes]], keepers: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        wanted: bool) -> None:
    address, got = langsmith_server
    for name in [name for name in os.environ if name.startswith(("LANGSMITH", "LANGCHAIN"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LANGSMITH_ENDPOINT", address)
    monkeypatch.setenv("LANGSMITH_API_KEY", CANARY)
    # One request per trace, as plain JSON: what is sent can be read here.
    monkeypatch.setenv("LANGSMITH_DISABLE_RUN_COMPRESSION", "true")
    monkeypatch.setattr(run_trees, "_CLIENT", None)
    if wanted:
        monkeypatch.setenv("LANGSMITH_TRACING", "true")
    get_env_var.cache_clear()
    try:
        Run.create(tmp_path / "run", task=keepers, model=FakePolicy(tmp_path / "run" / "adapters"), max_rounds=1,
                   strategy="textgrad", reuse_replies=False).adapt()
        run_trees.get_cached_client().flush()
    finally:
        get_env_var.cache_clear()
    sent = b"".join(got)
    assert (b"textgrad_edit" in sent) is wanted
    assert (b"runs" in sent) is wanted
    assert CANARY.encode() not in sent


class PlainKeys(RuleEditor):
    """A chat model of a user's, which holds its keys as plain text."""

    api_key: str = "plain-text-of-a-key"
    tokenizer_name: str = "the-name-of-a-tokenizer"
    model_kwargs: dict[str, Any] = Field(default_factory=lambda: {
        "extra_headers": {"Authorization": "nested-text-of-a-key", "X-Api-Key": "another-nested-key",
                          "X-Key-Id": "the-id-of-a-key"}})


def test_keys_are_found_by_the_names_of_their_fields_and_by_their_looks() -> None:
    found = secrets_of(PlainKeys())
    assert set(found) == {"plain-text-of-a-key", "nested-text-of-a-key", "another-nested-key",
                          "the-id-of-a-key"}
    for text in ("AKIAIOSFODNN7EXAMPLE", "github_pat_11ABCDEFG0abcdefghij", "{'api_key': 'abc-def'}",
                 "api_key: 'abc-def'", '"x-api-key": "abc-def"'):
        assert SECRET_MARK in scrub(f"refused {text} here")
        assert "abc-def" not in scrub(text)
    assert scrub("the monkey: 'tis a word; max_tokens: 12") == "the monkey: 'tis a word; max_tokens: 12"
