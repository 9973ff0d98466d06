"""Nothing in a run's files runs code or holds a secret."""

import os
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_POS_ARGS, JsonPlusSerializer

from nslora.graph.run import Run
from nslora.tools.checkpoints import CHECKPOINTS_FILE
from nslora.tools.lab import Lab, register
from nslora.tools.rule_editor import RuleEditor

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
    monkeypatch.setattr("nslora.tools.checkpoints.CONNECT_TIMEOUT_S", 1)
    run = begin(checkpoints=ADDRESS)
    with pytest.raises(Exception, match="does not answer") as caught:
        run.adapt()
    assert CANARY not in str(caught.value)
    assert all(CANARY.encode() not in path.read_bytes() for path in run.folder.rglob("*") if path.is_file())


def test_tensors_are_kept_as_safetensors_alone(finished: Run) -> None:
    suffixes = {path.suffix for path in finished.folder.rglob("*") if path.is_file() and path.name[0] != "."}
    assert suffixes <= {".json", ".jsonl", ".md", ".safetensors", ".sqlite", ".sqlite-shm", ".sqlite-wal"}


def test_tracing_is_off_unless_the_environment_asks_for_it(begin: Callable[..., Run],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    from langsmith.utils import get_env_var, tracing_is_enabled

    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING"):
        monkeypatch.delenv(name, raising=False)
    get_env_var.cache_clear()
    assert not tracing_is_enabled()
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    get_env_var.cache_clear()
    assert tracing_is_enabled()
    monkeypatch.delenv("LANGSMITH_TRACING")
    get_env_var.cache_clear()
