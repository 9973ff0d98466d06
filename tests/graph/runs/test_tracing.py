"""LangSmith traces a run only where the environment asks for it."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import CANARY, FakePolicy
from langsmith import run_trees
from langsmith.utils import get_env_var

from nslora.graph.runs.run import Run
from nslora.tools.tasks.task import Task


@pytest.fixture
def langsmith_server() -> Iterator[tuple[str, list[bytes]]]:
    """An address that takes whatever is sent to it, and what it got."""
    got: list[bytes] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.path.encode() + self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(202)
            self.end_headers()

        do_PATCH = do_POST  # noqa: N815 -- the name that http.server looks for

        def log_message(self, *_: Any) -> None:
            """Nothing: the test looks at what came."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()


@pytest.mark.parametrize("wanted", [False, True])
def test_traces_are_sent_where_the_environment_asks_for_them_and_nowhere_else(
    langsmith_server: tuple[str, list[bytes]],
    keepers: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool,
) -> None:
    address, got = langsmith_server
    for name in [name for name in os.environ if name.startswith(("LANGSMITH", "LANGCHAIN"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LANGSMITH_ENDPOINT", address)
    monkeypatch.setenv("LANGSMITH_API_KEY", CANARY)
    # One request per trace, as plain JSON: what is sent can be read here.
    monkeypatch.setenv("LANGSMITH_DISABLE_RUN_COMPRESSION", "true")
    monkeypatch.setattr(run_trees, "_CLIENT", None)
    if wanted:
        monkeypatch.setenv("LANGSMITH_TRACING", "true")
    get_env_var.cache_clear()
    try:
        Run.create(
            tmp_path / "run",
            task=keepers,
            model=FakePolicy(tmp_path / "run" / "adapters"),
            max_rounds=1,
            strategy="textgrad",
            reuse_replies=False,
        ).adapt()
        run_trees.get_cached_client().flush()
    finally:
        get_env_var.cache_clear()
    sent = b"".join(got)
    assert (b"textgrad_edit" in sent) is wanted
    assert (b"runs" in sent) is wanted
    assert CANARY.encode() not in sent
