"""Atomic writes, content hashes and JSON lines."""

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from nslora.tools.errors import DamagedError

_FILES_CACHED = 512  # per reader
T = TypeVar("T")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no white space), as 64 hex characters."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def as_text(value: Any) -> str:
    """Convert a value that JSON lacks to text that is the same in every process: `str`, without memory addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: to a temporary file in the same folder, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp would ignore the umask and make the file readable by its owner only.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with temporary.open("x", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str:
    """The text that `write_text` wrote. Raises DamagedError if the file is missing or damaged."""
    try:
        return path.read_bytes().decode("utf-8", "surrogatepass")
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({error}).") from error


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def quoted(path: Path) -> str:
    """Quote a path for the shell, for commands that the user copies."""
    return shlex.quote(str(from_here(path)))


def from_here(path: Path) -> Path:
    """Give the path relative to the working directory, if it is below it."""
    try:
        return path.relative_to(Path.cwd())
    except (OSError, ValueError):  # the working directory is gone, or the path is elsewhere
        return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def without_blank(record: dict[str, Any], *names: str) -> dict[str, Any]:
    """A record without those fields that are empty, so that files stay as they were before the fields existed."""
    return {key: value for key, value in record.items() if key not in names or value}


def append_jsonl(path: Path, row: Any) -> None:
    """Append one JSON line and flush it to disk. First removes the partial line of a killed writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_whole(path: Path) -> list[Any]:
    """Read a JSONL file that was written atomically. Raises DamagedError if it is missing or damaged."""
    if not path.exists():
        raise DamagedError(f"{path} is missing.")
    return read_jsonl(path, written_whole=True)


def read_jsonl(path: Path, *, written_whole: bool = False) -> list[Any]:
    """Read a JSONL file.

    Args:
        path: The file. If it does not exist, the result is empty.
        written_whole: True if the file was written atomically. False: lines were appended, so the last line may be
            partial (its writer was killed) and is left out.

    Raises:
        DamagedError: If a line is damaged. The message names the line.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogatepass").split("\n")
    except ValueError as error:
        raise DamagedError(f"{path} is damaged ({error}).") from error
    values = []
    for number, line in enumerate(lines if written_whole else lines[:-1], 1):
        try:
            values += [json.loads(line)] if line else []
        except ValueError as error:
            raise DamagedError(f"{path}:{number}: this line is damaged or cut off.") from error
    return values


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises DamagedError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({error}).") from error


def unless_changed(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """Cache a reader: it reads a file again only if the file's size, time of change or inode differs.

    Callers share the cached value, so nobody may change it.
    """

    @functools.lru_cache(_FILES_CACHED)
    def cached(path: Path, *_version: int) -> T:
        return read(path)

    @functools.wraps(read)
    def reader(path: Path) -> T:
        try:
            found = path.stat()
        except OSError:
            return read(path)  # raises the reader's own error
        return cached(path, found.st_mtime_ns, found.st_size, found.st_ino)

    return reader


def publish_folder(partial: Path, final: Path) -> None:
    """Rename a finished folder. Keeps an existing `final`, because the name is a hash of the content."""
    if final.exists():
        shutil.rmtree(partial)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)
