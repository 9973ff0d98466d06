"""Checkpointers, with a strict serialiser: a row of a checkpoint file never names code to run."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from nslora.tools.errors import RunError


def strict_serialiser() -> JsonPlusSerializer:
    """Plain values only; the default one imports and calls what a row names."""
    return JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)


@contextmanager
def sqlite_checkpoints(path: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    """The checkpoints of one run, in one SQLite file. Raises RunError where it cannot be opened."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    try:
        connection = sqlite3.connect(path, check_same_thread=False, timeout=30)
        saver = SqliteSaver(connection, serde=strict_serialiser())
        saver.setup()
    except sqlite3.DatabaseError as error:
        raise RunError(f"The checkpoints {path} cannot be opened ({error}): the file is damaged or of another "
                       "program.") from error
    try:
        yield saver
    finally:
        connection.close()
