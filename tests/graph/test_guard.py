"""A run is worked on by one process, on its own thread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nslora.graph.build import build_graph
from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError
from nslora.tools.files import read_json, write_json

Begin = Callable[..., Run]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm"))
    }


def test_a_thread_is_not_run_in_another_runs_folder(begin: Begin) -> None:
    one, other = begin("one", max_rounds=1), begin("other", max_rounds=1)
    before = files_of(other.folder)
    with one.checkpointer() as saver, pytest.raises(RunError, match="is another run's than"):
        build_graph(checkpointer=saver).invoke(one.first_state(), one.config, context=other.context)
    assert files_of(other.folder) == before
    assert one.adapt().report["stop"]  # nothing was lost


@pytest.mark.parametrize(
    "thread",
    [
        "my-thread",
        "3f2b8c4e-1d2a-4b3c-8d9e-0123456789ab",
        "user-3f2b8c4e-1d2a-4b3c-8d9e-0123456789ab",
        "chat-deadbeef0123",
        "job-202611261015",
    ],
)
def test_a_server_may_name_threads_as_it_likes(begin: Begin, thread: str) -> None:
    run = begin("one", max_rounds=0)
    with run.checkpointer() as saver:
        config: Any = {**run.config, "configurable": {"thread_id": thread}}
        assert (
            build_graph(checkpointer=saver).invoke(run.first_state(), config, context=run.context)["status"]
            == "finished"
        )


def test_a_run_from_before_threads_had_names_is_no_place_for_another(begin: Begin) -> None:
    one, old = begin("one", max_rounds=1), begin("old", max_rounds=1)
    record = read_json(old.folder / "run.json")
    del record["thread"]
    write_json(old.folder / "run.json", record)
    with one.checkpointer() as saver, pytest.raises(RunError, match="whose thread is adaptation"):
        build_graph(checkpointer=saver).invoke(one.first_state(), one.config, context=old.context)
