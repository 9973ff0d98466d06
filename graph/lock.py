"""One writer per run: an OS file lock, which is free again the moment its holder dies."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from nslora.tools.errors import RunError
from nslora.tools.files import quoted, write_json

LOCK_FILE = ".lock"
PATIENCE_S = 0.5  # `is_locked`, which asks by taking the lock, holds it for a moment
HOLDER_FILE = ".holder.json"  # beside the lock: opening a lock file empties it


_OWN: dict[Path, str] = {}  # folders whose run streams in this process, and the name of that stream


@contextmanager
def only_while_alone(folder: Path, stream: str) -> Iterator[None]:
    """For one node: hold the lock, unless this node belongs to the stream of a Run that holds it already.

    stream: what `sole_writer` gave; empty if a graph is invoked by hand or by LangGraph's own server.
    Raises RunError as `sole_writer` does.
    """
    if stream and _OWN.get(folder.resolve()) == stream:
        yield
        return
    with _locked(folder):
        yield


@contextmanager
def sole_writer(folder: Path) -> Iterator[str]:
    """Hold the run's lock as long as the block lasts; gives a name to pass to the nodes that may work under it.

    Raises RunError, naming the holder (process, host, since when), if another process or another Run object of this
    process holds the lock, and if nothing can be written to the folder.
    """
    with _locked(folder):
        stream = _OWN[folder.resolve()] = uuid4().hex
        try:
            yield stream
        finally:
            _OWN.pop(folder.resolve(), None)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # Not bound to a thread: a server that streams a run may ask for each update, and close, from another one.
    lock = FileLock(folder / LOCK_FILE, timeout=PATIENCE_S, poll_interval=0.01, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{folder} is in use by {_holder(folder)}.") from None
    except OSError as error:
        raise RunError(
            f"Nothing can be written to {folder} ({error.strerror}): mend that, then nslora resume {quoted(folder)}."
        ) from error
    try:
        write_json(
            folder / HOLDER_FILE,
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
        yield
    finally:
        (folder / HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether some process works on the run right now."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # read-only, or another user's: then its holder's own note is all there is to see
        return (folder / HOLDER_FILE).exists()
    lock.release()
    return False


def _holder(folder: Path) -> str:
    """Who holds the lock, and what to do about it, in words."""
    try:
        record = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
        who = f"process {record['pid']} on {record['host']}, since {record['since']}"
        own = (record["pid"], record["host"]) == (os.getpid(), socket.gethostname())
    except (OSError, ValueError, KeyError, TypeError):
        who, own = "another process", False
    if own:
        return f"{who}, which is this very one: close the stream that is open, or wait for the thread at work on it"
    return f"{who}: wait for it, or stop it"
