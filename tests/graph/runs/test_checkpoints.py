"""Where checkpoints are kept: a file, a database, a saver of the user's own."""

import os
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from fakes import CANARY
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_POS_ARGS, JsonPlusSerializer

from nslora.graph.runs.checkpoints import (
    CHECKPOINTS_FILE,
    check_place,
    place_of,
    postgres_checkpoints,
    sqlite_checkpoints,
    without_password,
)
from nslora.graph.runs.fork import fork
from nslora.graph.runs.replay import replay
from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError, SettingsError
from nslora.tools.workspace.record import RUN_FILE

Begin = Callable[..., Run]


@pytest.mark.engines
def test_a_run_with_its_checkpoints_in_postgresql_stops_goes_on_and_forks(database: str, begin: Begin) -> None:
    run = begin(checkpoints=database, max_rounds=1)
    assert "a-password" not in (run.folder / RUN_FILE).read_text()
    stream = run.stream(("updates",))
    assert [next(iter(part)) for _, part in (next(stream), next(stream))] == ["evaluate", "monitor"]
    stream.close()
    again = Run.open(run.folder, checkpoints=database)
    nodes = [next(iter(part)) for _, part in again.stream(("updates",))]
    assert (nodes[0], nodes[-1]) == ("classify", "finish")
    state = again.state()
    assert state is not None
    assert state["status"] == "finished"
    other = fork(again, run.folder.with_name("fork"), at=1, action="lora")
    assert [each["action"] for each in other.adapt().report["rounds"]] == ["lora"]
    assert not any((each.folder / "checkpoints.sqlite").exists() for each in (run, other))


@pytest.mark.engines
def test_two_runs_in_one_database_do_not_share_a_thread(database: str, begin: Begin) -> None:
    one, two = begin("one", checkpoints=database, max_rounds=0), begin("two", checkpoints=database, max_rounds=0)
    one.adapt()
    assert two.state() is None


def test_a_database_that_does_not_answer_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nslora.graph.runs.checkpoints.CONNECT_TIMEOUT_S", 1.5)
    url = "postgresql://me:canary-1234@127.0.0.1:1/none"
    with pytest.raises(RunError, match=r"me@127\.0\.0\.1:1/none does not answer"), postgres_checkpoints(url):
        pass


def test_a_password_is_found_again_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://me:secret@db/runs?password=x"
    assert without_password(url) == "postgresql://me@db/runs?password="
    assert place_of(without_password(url)) == without_password(url)
    monkeypatch.setenv("NSLORA_CHECKPOINTS", url)
    assert place_of(without_password(url)) == url
    assert place_of(None) is None


def test_a_run_does_not_begin_again_in_another_database(begin: Begin) -> None:
    run = begin(max_rounds=0)
    with pytest.raises(RunError, match="in its file checkpoints"):
        Run.open(run.folder, checkpoints="postgresql://me:secret@db/runs")


def test_a_saver_of_ones_own_is_used_as_it_is(begin: Begin) -> None:
    saver = InMemorySaver()
    run = begin(checkpoints=saver, max_rounds=0)
    run.adapt()
    assert sum(1 for _ in saver.list(run.config)) > 3
    with pytest.raises(RunError, match="are in a checkpointer object"):
        Run.open(run.folder)
    assert Run.open(run.folder, checkpoints=saver).state() is not None
    assert not (run.folder / "checkpoints.sqlite").exists()


@pytest.mark.engines
def test_a_database_of_a_newer_version_or_one_that_goes_away_is_named(database: str, begin: Begin) -> None:
    import psycopg

    run = begin(checkpoints=database, max_rounds=0)
    stream = run.stream(("updates",))
    next(stream)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        with pytest.raises(RunError, match="broke off"):
            list(stream)
        assert run.adapt().report["rounds"] == []
        other.execute("INSERT INTO checkpoint_migrations (v) VALUES (999)")
        rows = other.execute("SELECT count(*) FROM checkpoints").fetchone()
        with pytest.raises(RunError, match="of a newer langgraph"):
            run.state()
        assert other.execute("SELECT count(*) FROM checkpoints").fetchone() == rows
        other.execute("DELETE FROM checkpoint_migrations WHERE v = 999")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@ss/s3cretpw@h/db",
        "postgresql://u:s3@cretpw@127.0.0.1:1/db",
        "postgresql://u:s3/cretpw@h/db",
        "postgresql://u:s3cretpw@h/db?x=a@b",
        "postgres://h/db?password=s3cretpw&user=u",
    ],
)
def test_no_part_of_a_password_is_written_down(url: str) -> None:
    assert "cretpw" not in without_password(url)
    for plain in ("postgresql://u@h/db", "postgresql://h:5432/db?user=me@corp", "postgresql://u@h:5432/db"):
        assert without_password(plain) == plain


def test_a_url_that_cannot_be_read_is_refused_and_not_quoted(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="cannot be read as a URL") as refused:
        check_place("postgresql://u:s3cretpw@[bad/db")
    assert "s3cretpw" not in str(refused.value) + "".join(capfd.readouterr())


def test_a_database_that_does_not_answer_logs_no_password(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nslora.graph.runs.checkpoints.CONNECT_TIMEOUT_S", 1)
    with pytest.raises(RunError), postgres_checkpoints("postgresql://u:s3cretpw@127.0.0.1:1/db"):
        pass
    assert "s3cretpw" not in caplog.text


def test_a_run_where_nothing_can_be_written_is_forked_and_replayed_elsewhere(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in finished.folder.glob("checkpoints.sqlite*")}
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != finished.folder)
    assert fork(finished, tmp_path / "fork", at=3, action="textgrad").state() is not None
    assert replay(finished, tmp_path / "replay").same
    assert {path.name: path.read_bytes() for path in finished.folder.glob("checkpoints.sqlite*")} == before


def test_a_place_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(RunError, match="see to the rights"), sqlite_checkpoints(tmp_path / "folder.sqlite"):
        pass


ADDRESS = f"postgresql://nslora:{CANARY}@127.0.0.1:1/none"


def crafted(proof: Path) -> list[tuple[str, bytes]]:
    """Rows that would run `touch` if they were read as the default serialiser reads them."""
    call = ormsgpack.packb(("os", "system", (f"touch {proof}",)))

    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {proof}",)

    constructor = ormsgpack.packb({"status": ormsgpack.Ext(EXT_CONSTRUCTOR_POS_ARGS, call)})
    as_json = (
        b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["touch ' + str(proof).encode() + b'"]}'
    )
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
    run = Run(finished.folder, finished.workspace)
    run.folder = tmp_path
    for read in (run.state, run.question):
        with suppress(Exception):  # whether it is refused or read as plain data is not the point
            read()
    assert not proof.exists()


def test_the_crafted_row_would_run_code_under_langgraphs_own_default(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    JsonPlusSerializer().loads_typed(crafted(proof)[0])
    assert proof.exists()


def test_a_databases_password_is_written_nowhere(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nslora.graph.runs.checkpoints.CONNECT_TIMEOUT_S", 1)
    run = begin(checkpoints=ADDRESS)
    with pytest.raises(Exception, match="does not answer") as caught:
        run.adapt()
    assert CANARY not in str(caught.value)
    assert all(CANARY.encode() not in path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
