"""Files that are either whole or absent: atomic writes, content hashes, JSON lines."""

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

BLOCK_BYTES = 1 << 20
FILES_REMEMBERED = 512  # by each reader
T = TypeVar("T")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex characters."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON-like value in its canonical form (sorted keys, no white space), 64 hex characters."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def as_text(value: Any) -> str:
    """A value that JSON lacks, the same in every process: dates as they read, objects without their address."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary file beside it, flushed to disk, then renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by mkstemp, whose files nobody else may read whatever the umask says.
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
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def quoted(path: Path) -> str:
    """A path as a shell takes it, for commands that are printed to be typed."""
    return shlex.quote(str(from_here(path)))


def from_here(path: Path) -> Path:
    """The path as people would type it: without the working directory's, where it lies below that."""
    try:
        return path.relative_to(Path.cwd())
    except (OSError, ValueError):  # the working directory is gone, or the path is elsewhere
        return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: Any) -> None:
    """Append one JSON line and flush it to disk; a half line that a kill left behind is cut off first."""
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
    """All lines of a JSONL file that must be there. Raises DamagedError where it is missing or damaged."""
    if not path.exists():
        raise DamagedError(f"{path} is missing.")
    return read_jsonl(path, written_whole=True)


def read_jsonl(path: Path, *, written_whole: bool = False) -> list[Any]:
    """All lines of a JSONL file; none where there is no file.

    A last line that a kill cut off while it was appended is left out, since its writer never returned. A file that is
    `written_whole` has no such line. Raises DamagedError, naming the line, where one is damaged.
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
    """The value in a JSON file. Raises DamagedError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({error}).") from error


def unless_changed(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """The reader, with what it read last of each file; it reads again once a file's size or time of change differs.

    What it gives is shared, so it must be a plain value that nobody changes.
    """
    known: dict[Path, tuple[tuple[int, int, int], T]] = {}

    @functools.wraps(read)
    def reader(path: Path) -> T:
        try:
            found = path.stat()
        except OSError:
            return read(path)  # which knows what to say of it
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        if path not in known or known[path][0] != mark:
            while len(known) >= FILES_REMEMBERED:
                del known[next(iter(known))]
            known[path] = (mark, read(path))
        return known[path][1]

    return reader


def publish_folder(partial: Path, final: Path) -> None:
    """Rename a finished folder into place; a folder of that name (same content, by its hash) stays as it is."""
    if final.exists():
        shutil.rmtree(partial)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)
