"""Checkpointers, with a strict serialiser: a row of a checkpoint file never names code to run."""

import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from nslora.tools.errors import RunError, SettingsError, StoppedError

CHECKPOINTS_FILE = "checkpoints.sqlite"
DATABASE_VERSION = 1  # SQLite's user_version of our checkpoint files; a higher one is left alone
CONNECT_TIMEOUT_S = 10
WITHOUT = (
    "If it cannot be mended, move it away and resume: the run begins again from its records, which hold what "
    "was paid for."
)
OBJECT = "object"  # in the record if the user gave a checkpointer
POSTGRES = ("postgresql://", "postgres://")


def _strict_serialiser() -> JsonPlusSerializer:
    """Plain values only; the default one imports and calls what a row names."""
    return JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)


@contextmanager
def sqlite_checkpoints(path: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    """The checkpoints of one run, in one SQLite file. Raises RunError if it cannot be opened.

    Those in a folder that is only to be read are copied first, since SQLite writes beside what it reads.
    """
    from langgraph.checkpoint.sqlite import SqliteSaver

    if path.exists() and not os.access(path.parent, os.W_OK):
        with tempfile.TemporaryDirectory() as own:
            for each in (path, path.with_name(f"{path.name}-wal")):
                if each.exists():
                    shutil.copyfile(each, Path(own) / each.name)
            with sqlite_checkpoints(Path(own) / path.name) as copied:
                yield copied
        return
    new = not path.exists()
    try:
        connection = sqlite3.connect(path, check_same_thread=False, timeout=30)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version <= DATABASE_VERSION:
            saver = SqliteSaver(connection, serde=_strict_serialiser())
            saver.setup()
            if new:
                connection.execute(f"PRAGMA user_version = {DATABASE_VERSION}")
                connection.commit()
    except sqlite3.Error as error:
        if not any(words in str(error) for words in ("malformed", "not a database")):
            raise RunError(
                f"The checkpoints {path} cannot be opened ({error}): see to the rights of the file and of "
                "its folder, and to the space on its disk; nothing was changed."
            ) from error
        raise RunError(
            f"The checkpoints {path} cannot be opened ({error}): the file is damaged or of another program. {WITHOUT}"
        ) from error
    if version > DATABASE_VERSION:
        connection.close()
        raise RunError(
            f"The checkpoints {path} are of a newer nslora (version {version}, this one knows "
            f"{DATABASE_VERSION}): upgrade nslora; nothing was changed."
        )
    try:
        yield saver
    except sqlite3.Error as error:
        raise StoppedError(
            f"The checkpoints {path} could not be written or read ({error}): make room or mend the file; "
            f"every finished step is kept. {WITHOUT}"
        ) from error
    finally:
        connection.close()


@contextmanager
def postgres_checkpoints(url: str) -> Iterator[BaseCheckpointSaver[Any]]:
    """Checkpoints in PostgreSQL, through a small pool. Raises RunError if the server cannot be reached.

    Where the URL holds no password, libpq's own places are asked: PGPASSWORD, ~/.pgpass.
    """
    try:
        from langgraph.checkpoint.postgres import PostgresSaver
        from psycopg import Error
        from psycopg.rows import dict_row
        from psycopg_pool import ConnectionPool, PoolTimeout
    except ImportError as error:
        raise RunError("Checkpoints in PostgreSQL need more packages: pip install 'nslora[postgres]'.") from error
    # Without autocommit nothing is durable before the pool closes; prepared statements break behind pgbouncer; from a
    # database without an encoding (initdb in the C locale), texts would come back as bytes.
    options = {
        "autocommit": True,
        "prepare_threshold": 0,
        "row_factory": dict_row,
        "client_encoding": "utf8",
        "connect_timeout": CONNECT_TIMEOUT_S,
    }
    logging.getLogger("psycopg.pool").addFilter(_hide_password)
    pool: Any = ConnectionPool(url, min_size=1, max_size=4, kwargs=options, open=False, timeout=CONNECT_TIMEOUT_S)
    try:
        pool.open(wait=True, timeout=CONNECT_TIMEOUT_S)
        saver = PostgresSaver(pool, serde=_strict_serialiser())
        _refuse_newer(pool, len(saver.MIGRATIONS), without_password(url))
        saver.setup()
    except (PoolTimeout, Error) as error:
        pool.close()
        raise RunError(
            f"The checkpoint database {without_password(url)} does not answer ({type(error).__name__}): "
            "start it, or correct the address."
        ) from None
    try:
        yield saver
    except (PoolTimeout, Error) as error:
        raise StoppedError(
            f"The checkpoint database {without_password(url)} broke off ({type(error).__name__}): start it "
            "again, then resume; every finished step is kept."
        ) from None
    finally:
        pool.close()


def _refuse_newer(pool: Any, known: int, url: str) -> None:
    """Raise RunError, before anything is written, if a newer langgraph laid out the tables."""
    with pool.connection() as connection:
        if connection.execute("SELECT to_regclass('checkpoint_migrations') AS name").fetchone()["name"] is None:
            return
        newest = connection.execute("SELECT max(v) AS v FROM checkpoint_migrations").fetchone()["v"]
    if newest is not None and newest >= known:
        raise RunError(
            f"The checkpoint database {url} is of a newer langgraph (layout {newest}, this one knows "
            f"{known - 1}): upgrade langgraph-checkpoint-postgres; nothing was changed."
        )


def check_checkpoints(checkpoints: object) -> None:
    """Raise SettingsError if `checkpoints` is neither a place (see `check_place`) nor a checkpointer."""
    if checkpoints is None or isinstance(checkpoints, str):
        check_place(checkpoints)
    elif not isinstance(checkpoints, BaseCheckpointSaver):
        kind = type(checkpoints).__name__
        what_to_do = (
            "wanted postgresql://user@host/database, a LangGraph checkpointer, or nothing for a file in the "
            "run's folder"
        )
        if kind.endswith("GeneratorContextManager"):
            what_to_do = "open it first, as in: with SqliteSaver.from_conn_string(...) as saver"
        raise SettingsError(f"checkpoints={kind} is no checkpointer: {what_to_do}.")


def refuse_unreadable(saver: BaseCheckpointSaver[Any], config: RunnableConfig, folder: Path) -> None:
    """Raise RunError if the newest checkpoint of a run was written by another serialiser, or under another key."""
    try:
        saver.get_tuple(config)
    except (ValueError, NotImplementedError) as error:
        raise RunError(
            f"The checkpoints of {folder} cannot be read with this checkpointer ({error}): give one with the "
            "serialiser, and the key, that they were written with; nothing was changed."
        ) from error


def check_place(place: str | None) -> None:
    """Raise SettingsError if `place` is neither None nor the URL of a PostgreSQL database."""
    if place is None:
        return
    if not place.startswith(POSTGRES):
        raise SettingsError(
            f"--checkpoints {without_password(place)}: wanted postgresql://user@host/database, or "
            "nothing for a file in the run's folder."
        )
    with suppress(ImportError):  # without psycopg, opening says what to install
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            conninfo_to_dict(place)
        except ProgrammingError:  # its message quotes the URL
            raise SettingsError(
                f"--checkpoints {without_password(place)} cannot be read as a URL: write "
                "postgresql://user:password@host:port/database, with special characters of the "
                "password percent-encoded."
            ) from None


def without_password(url: str) -> str:
    """The URL as it may be written down."""
    # Up to the last @ before the query, so that a password that should have been percent-encoded goes as a whole; what
    # stands after the first colon is a port, not a password, if it is digits alone.
    return re.sub(r"(://[^:/@]*):(?!\d+(?:[/?#]|$))[^?#]*@", r"\1@", re.sub(r"password=[^&\s]*", "password=", url))


def _hide_password(record: logging.LogRecord) -> bool:
    """Filter of a logger whose warnings quote the URL, password and all."""
    record.msg, record.args = without_password(record.getMessage()), ()
    return True


def described(recorded: str | None) -> str:
    """Where a run's checkpoints are, in words."""
    return {None: f"its file {CHECKPOINTS_FILE}", OBJECT: "a checkpointer object"}.get(recorded, str(recorded))


def place_of(recorded: str | None) -> str | None:
    """Where a run's checkpoints are: as recorded, or as NSLORA_CHECKPOINTS says, which may carry the password."""
    given = os.environ.get("NSLORA_CHECKPOINTS")
    return given if recorded and given and without_password(given) == recorded else recorded


def copy_past(
    source: BaseCheckpointSaver[Any], target: BaseCheckpointSaver[Any], at: CheckpointTuple, thread: str
) -> RunnableConfig:
    """Copy the checkpoint `at` and all that it grew from into `target`, under another thread id.

    The source is only read. The two may be one saver, or two that number versions differently: the copy has versions of
    the target's own, in the same order. Returns the config of the copy of `at`.
    """
    line = [at]
    while line[-1].parent_config is not None and (parent := source.get_tuple(line[-1].parent_config)) is not None:
        line.append(parent)
    versions = _numbered_by(target, [each.checkpoint for each in line])
    config: RunnableConfig = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    before: dict[str, Any] = {}
    for each in reversed(line):
        metadata: Any = {**each.metadata, "thread_id": thread} if "thread_id" in each.metadata else each.metadata
        channels, seen = each.checkpoint["channel_versions"], each.checkpoint["versions_seen"]
        now = {name: versions[version] for name, version in channels.items()}
        copy = each.checkpoint.copy()
        copy["channel_versions"] = now
        copy["versions_seen"] = {
            node: {name: versions[version] for name, version in of_node.items()} for node, of_node in seen.items()
        }
        config = target.put(config, copy, metadata, {k: v for k, v in now.items() if before.get(k) != v})
        before = now
        writes: dict[str, list[tuple[str, Any]]] = {}
        for task, channel, value in each.pending_writes or ():
            writes.setdefault(task, []).append((channel, value))
        if each is not at:  # what the fork's first step writes is its own
            for task, values in writes.items():
                target.put_writes(config, values, task)
    return config


def _numbered_by(target: BaseCheckpointSaver[Any], checkpoints: Iterable[Checkpoint]) -> dict[Any, Any]:
    """Every version in the checkpoints, and the one of the same rank by the target's numbering.

    Versions are integers, or texts that begin with one, padded to 32 digits.
    """
    found: set[Any] = set()
    for each in checkpoints:
        for versions in (each["channel_versions"], *each["versions_seen"].values()):
            found |= set(versions.values())
    numbered, last = {}, None
    for version in sorted(found, key=lambda each: each if isinstance(each, str) else f"{each:032}"):
        numbered[version] = last = target.get_next_version(last, None)
    return numbered
