"""One scenario over all kinds of checkpointers: run, stop, approve, history, fork, replay, time travel, prune."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import ObedientPolicy
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from scripted_runs import ONCE, TWICE, begun, edits

from nslora.graph.build import build_graph
from nslora.graph.runs.checkpoints import CHECKPOINTS_FILE
from nslora.graph.runs.run import Run
from nslora.tools.errors import LostRoundsError, RunError
from nslora.tools.files import read_json
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.record import RUN_FILE

Checkpoints = str | BaseCheckpointSaver[Any] | None


class IntegerVersions(InMemorySaver):
    """A saver that numbers versions as the base class does, and MongoDB's."""

    def get_next_version(self, current: Any, channel: None = None) -> Any:
        return BaseCheckpointSaver.get_next_version(self, current, channel)


@contextmanager
def file_of_ones_own(tmp_path: Path) -> Iterator[Checkpoints]:
    with SqliteSaver.from_conn_string(str(tmp_path / "own.sqlite")) as saver:
        yield saver


@contextmanager
def encrypted(tmp_path: Path) -> Iterator[Checkpoints]:
    pytest.importorskip("Crypto", reason="pycryptodome is not installed")
    from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

    plain = JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)
    key = b"A key of 16 byte"
    serde, other = (EncryptedSerializer.from_pycryptodome_aes(plain, key=each) for each in (key, b"B" * 16))
    path = tmp_path / "encrypted.sqlite"
    connection = sqlite3.connect(path, check_same_thread=False)
    yield SqliteSaver(connection, serde=serde)
    for wrong in (plain, other):
        with pytest.raises(RunError, match=r"cannot be read with this checkpointer .* and the key"):
            Run.open(tmp_path / "run", checkpoints=SqliteSaver(connection, serde=wrong), needs_editor=False)
    kinds = connection.execute(
        "SELECT DISTINCT type FROM checkpoints UNION SELECT DISTINCT type FROM writes"
    ).fetchall()
    assert {kind for (kind,) in kinds} <= {"msgpack+aes", "null+aes"}  # the forks' rows, too
    connection.close()
    assert not [each for each in tmp_path.rglob("*") if each.is_file() and key in each.read_bytes()]


@contextmanager
def asynchronous(tmp_path: Path) -> Iterator[Checkpoints]:
    """The saver of an event loop in a thread of its own; a Run asks it from this one."""
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    opened = AsyncSqliteSaver.from_conn_string(str(tmp_path / "async.sqlite"))
    try:
        yield asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result()
        asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def mongodb(tmp_path: Path) -> Iterator[Checkpoints]:
    mongomock = pytest.importorskip("mongomock", reason="mongomock is not installed")
    saver = pytest.importorskip("langgraph.checkpoint.mongodb", reason="langgraph-checkpoint-mongodb is not installed")
    builder = mongomock.collection.BulkOperationBuilder
    add_update = builder.add_update
    with pytest.MonkeyPatch.context() as patch:  # pymongo names an argument that mongomock does not know
        patch.setattr(builder, "add_update", lambda self, *given, sort=None, **more: add_update(self, *given, **more))
        yield saver.MongoDBSaver(mongomock.MongoClient())


@contextmanager
def default(tmp_path: Path) -> Iterator[Checkpoints]:
    yield None


@contextmanager
def memory(tmp_path: Path) -> Iterator[Checkpoints]:
    yield InMemorySaver()


@contextmanager
def integers(tmp_path: Path) -> Iterator[Checkpoints]:
    yield IntegerVersions()


IN_PROCESS = [default, memory, file_of_ones_own, integers, encrypted, asynchronous]


@pytest.mark.parametrize("opened", IN_PROCESS)
def test_a_checkpointer_conforms(opened: Callable[[Path], Any], tmp_path: Path, task: Task) -> None:
    with opened(tmp_path) as checkpoints:
        conforms(tmp_path, task, checkpoints)


@pytest.mark.engines
def test_mongodbs_checkpointer_conforms(tmp_path: Path, task: Task) -> None:
    with mongodb(tmp_path) as checkpoints:
        conforms(tmp_path, task, checkpoints)


@pytest.mark.engines
def test_postgresqls_checkpointer_conforms(tmp_path: Path, task: Task, database: str) -> None:
    conforms(tmp_path, task, database)


def conforms(tmp_path: Path, task: Task, checkpoints: Checkpoints) -> None:
    """Raise AssertionError if a run with these checkpoints does not do what every run does."""
    editor, policy = edits(ONCE, TWICE), ObedientPolicy()

    def opened(run: Run) -> Run:
        return Run.open(run.folder, task=task, editor=editor, model=policy, checkpoints=checkpoints)

    run = begun(tmp_path, task, editor, model=policy, max_rounds=2, approve="edits", checkpoints=checkpoints)
    stream = run.stream(("updates",))
    assert [next(iter(part)) for _, part in (next(stream) for _ in range(3))] == ["evaluate", "monitor", "classify"]
    stream.close()

    run = opened(run)
    with pytest.raises(RunError, match="waits for a person"):
        run.adapt()
    run = opened(run)
    assert run.question()["kind"] == "textgrad"
    with pytest.raises(RunError, match="waits for a person"):
        run.resume("accept")
    run = opened(run)
    first = run.resume("reject").report
    assert [each["person"]["answer"] for each in first["rounds"]] == ["accept", "reject"]

    history = run.history()
    assert [each.values.get("round", 0) for each in history] == sorted(
        (each.values.get("round", 0) for each in history), reverse=True
    )
    assert all(len(each.values.get("rounds", [])) == each.values.get("round", 0) for each in history)
    assert sum("classify" in each.next for each in history) == 2

    other = run.fork(tmp_path / "fork", at=2)
    recorded = [read_json(each.folder / RUN_FILE)["checkpoints"] for each in (run, other)]
    assert recorded[0] == recorded[1]
    assert (other.folder / CHECKPOINTS_FILE).exists() is (checkpoints is None)
    assert other.thread != run.thread
    with pytest.raises(RunError, match="waits for a person"):
        other.adapt()
    assert opened(other).resume("accept").report["rounds"][1]["person"] == {"answer": "accept"}
    assert run.report() == first  # the fork only read it

    again = run.replay(tmp_path / "again")
    assert again.same, again.differences
    assert (again.run.folder / CHECKPOINTS_FILE).exists() is (checkpoints is None)

    with run.checkpointer() as saver:
        graph = build_graph(checkpointer=saver)
        past = [each for each in run.history() if "monitor" in each.next][-2]
        verdict = {**past.values["verdict"], "kept": True}
        branch = graph.update_state(past.config, {"verdict": verdict}, as_node="evaluate")
        graph.invoke(None, {**run.config, **branch}, context=run.context)  # to the next question
    run.resume("reject")
    assert run.report()["result"] == first["rounds"][0]["candidate"]

    with run.checkpointer() as saver:
        shortened(saver, run)
    with pytest.raises(LostRoundsError):
        run.adapt()
    run.restore()
    assert run.adapt().report == run.report()
    assert [each["kept"] for each in run.report()["rounds"]] == [True, False]


def shortened(saver: BaseCheckpointSaver[Any], run: Run) -> None:
    """Leave only the newest checkpoint of the run, as savers do that prune or expire; not all of them can."""
    newest = saver.get_tuple(run.config)
    assert newest is not None
    saver.delete_thread(run.thread)
    config: Any = {"configurable": {"thread_id": run.thread, "checkpoint_ns": ""}}
    saver.put(config, newest.checkpoint, newest.metadata, newest.checkpoint["channel_versions"])


@pytest.mark.parametrize(("source", "target"), [(IntegerVersions, InMemorySaver), (InMemorySaver, IntegerVersions)])
def test_a_run_is_forked_into_a_checkpointer_that_numbers_otherwise(
    tmp_path: Path, task: Task, source: type[InMemorySaver], target: type[InMemorySaver]
) -> None:
    run = begun(tmp_path, task, edits(ONCE, TWICE), max_rounds=2, checkpoints=source())
    run.adapt()
    saver = target()
    other = run.fork(tmp_path / "fork", at=2, checkpoints=saver)
    assert len(other.adapt().rounds) == 2
    assert len(other.history()) == len(run.history())
    assert {type(each) for each in saver.get_tuple(other.config).checkpoint["channel_versions"].values()} == {  # type: ignore[union-attr]
        type(saver.get_next_version(None, None))
    }
