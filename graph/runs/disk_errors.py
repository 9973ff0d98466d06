"""One sentence for a disk that is full, read-only or failing, whether Python, SQLite or safetensors met it."""

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nslora.tools.errors import RunError, StoppedError
from nslora.tools.files import quoted

ABOUT_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
OF_RUST = re.compile(r"\(os error (\d+)\)")  # as safetensors writes what the system said
OF_SQLITE = re.compile(r"disk is full|disk I/O error|readonly database|unable to open database", re.IGNORECASE)


@contextmanager
def named_disk_problems(folder: Path) -> Iterator[None]:
    """Raise StoppedError if the block fails because of the disk; every other error passes as it is."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        problem = _disk_problem(error)
        if problem is None:
            raise
        raise StoppedError(
            f"The run {folder} cannot be written ({problem}): make room or mend the folder, then go on with "
            f"nslora resume {quoted(folder)}. Every finished step is kept."
        ) from error


def _disk_problem(error: BaseException) -> str | None:
    """What is wrong with the disk, in words; None if the error is about something else."""
    if isinstance(error, OSError) and error.errno in ABOUT_THE_DISK:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if isinstance(error, sqlite3.OperationalError) and OF_SQLITE.search(str(error)):
        return f"SQLite: {error}"
    found = OF_RUST.search(str(error))
    if found and int(found.group(1)) in ABOUT_THE_DISK:
        return os.strerror(int(found.group(1)))
    return None
