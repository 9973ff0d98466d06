"""A PostgreSQL server for the tests that need one."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def programs() -> Path | None:
    """Where PostgreSQL's programs are; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    return next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


@pytest.fixture(scope="package")
def database() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the tests of this folder."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="nslora-postgres-"))
    # PostgreSQL refuses to run as root.
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        other = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program: str, *words: str) -> None:
        # To a file: a pipe would stay open as long as the server that inherits it.
        with (folder / "said").open("w+") as said:
            done = subprocess.run(
                [found / program, "-D", folder / "data", *words],
                cwd=folder,
                stdout=said,
                stderr=said,
                env={"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C"},
                check=False,
                **other,
            )
            said.seek(0)
            assert done.returncode == 0, said.read()

    call("initdb", "-U", "nslora", "--auth=trust", "--no-sync")
    call(
        "pg_ctl",
        "start",
        "-w",
        "-l",
        str(folder / "log"),
        "-o",
        f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off",
    )
    try:
        yield f"postgresql://nslora:a-password@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(folder)
