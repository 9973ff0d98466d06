"""Files that are whole or absent, and read again only once they changed."""

import os
from pathlib import Path

from nslora.tools.files import read_json, unless_changed, write_json, write_text


def test_a_file_is_read_again_only_after_it_changed(tmp_path: Path) -> None:
    reads: list[str] = []

    @unless_changed
    def read(path: Path) -> str:
        reads.append(path.name)
        return path.read_text()

    path = tmp_path / "a.txt"
    write_text(path, "one")
    assert (read(path), read(path), reads) == ("one", "one", ["a.txt"])
    write_text(path, "two")
    assert (read(path), read(path), reads) == ("two", "two", ["a.txt"] * 2)


def test_a_file_that_is_missing_is_the_readers_own_affair(tmp_path: Path) -> None:
    read = unless_changed(lambda path: path.exists())
    assert read(tmp_path / "none") is False
    write_text(tmp_path / "none", "there")
    assert read(tmp_path / "none") is True


def test_what_was_written_with_half_a_surrogate_pair_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"error": "caf\udce9 \ud83d"})
    assert read_json(tmp_path / "a.json") == {"error": "caf\udce9 \ud83d"}


def test_files_of_a_run_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644
