"""LangGraph's own server serves the graph, offline and without a key."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient

from nslora.graph.runs.run import Run
from nslora.graph.server import make_graph
from nslora.tools.errors import RunError
from nslora.tools.files import read_json, read_jsonl

ROOT = Path(__file__).parents[2]
START_S = 180  # 3 s on a free machine; most of it is imports


@contextmanager
def serving(folder: Path) -> Iterator[tuple[SyncLangGraphClient, "subprocess.Popen[bytes]"]]:
    """A server whose own store is in `folder`, so that another one there goes on with its threads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LANGSMITH", "LANGCHAIN"))}
    command = [
        str(Path(sys.executable).with_name("langgraph")),
        "dev",
        "--no-browser",
        "--no-reload",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--config",
        "langgraph.json",
    ]
    # The server's own store goes where it is started.
    for name in ("langgraph.json", "graph"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "LANGGRAPH_CLI_NO_ANALYTICS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/ok", process, folder / "server.log")
            yield get_sync_client(url=url, timeout=300), process
        finally:
            process.terminate()


@pytest.fixture
def server(own_cache: Path, tmp_path: Path) -> Iterator[SyncLangGraphClient]:
    with serving(tmp_path) as (client, _):
        yield client


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"langgraph dev did not start: {log.read_text()[-2000:]}")


@pytest.mark.engines
def test_the_server_runs_two_rounds_shows_their_history_and_goes_on_from_a_changed_state(
    server: SyncLangGraphClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    run = begin(max_rounds=2)
    thread = server.threads.create()["thread_id"]
    context = {"folder": str(run.folder.resolve())}
    (assistant,) = server.assistants.search()
    schemas: Any = server.assistants.get_schemas(assistant["assistant_id"])
    assert schemas["context_schema"]["properties"].keys() == {"folder"}
    for kind in ("input_schema", "output_schema", "state_schema"):
        assert schemas[kind]["properties"]["kept"]
        assert "required" not in schemas[kind]  # a form may be sent empty
    assert schemas["config_schema"]
    server.runs.wait(thread, "adapt", input={}, context=context, interrupt_before=["finish"])
    state: Any = server.threads.get_state(thread)
    assert state["next"] == ["finish"]
    assert [each["action"] for each in state["values"]["rounds"]] == ["textgrad", "textgrad"]
    history = server.threads.get_history(thread, limit=50)
    assert [each["next"] for each in history][-2] == ["evaluate"]
    assert sum(each["next"] == ["classify"] for each in history) == 2
    server.threads.update_state(thread, {"stop": "stopped by hand"}, as_node="monitor")
    server.runs.wait(thread, "adapt", input=None, context=context)
    ended: Any = server.threads.get_state(thread)["values"]
    assert (ended["status"], ended["stop"]) == ("finished", "stopped by hand")
    assert run.report()["stop"] == "stopped by hand"


@pytest.mark.engines
def test_errors_reach_a_client_of_the_server_in_their_own_words(
    server: SyncLangGraphClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    unreached = begin("unreached", editor="tiny-1", editor_base_url=nobody, check_editor=False, strategy="textgrad")
    fresh: Any = unreached.first_state()
    missing = str(tmp_path / "missing")
    for context, words in (
        (None, "invoked without its context: pass context=run.context"),
        ({"folder": missing}, missing),
        (
            {"folder": str(unreached.folder.resolve())},
            "The editor ChatOpenAI:tiny-1 failed with OpenAIConnectionError: Connection error. No usable answer came: "
            "check the chat model, its base URL and the network, then resume the run; no round was counted.",
        ),
    ):
        thread = server.threads.create()["thread_id"]
        told: Any = server.runs.wait(thread, "adapt", input=fresh, context=context, raise_error=False)
        assert words in told["__error__"]["message"]
        with pytest.raises(Exception, match=re.escape(words)):
            server.runs.wait(thread, "adapt", input=fresh if context is None else None, context=context)
    state: Any = server.threads.get_state(thread)["values"]
    assert (state["round"], state["editor_failures"]) == (0, 0)


@pytest.mark.engines
def test_the_server_conforms_as_checkpointers_do(
    server: SyncLangGraphClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """The scenario of tests/graph/runs/test_savers.py, as far as the SDK has its steps."""
    run = begin(max_rounds=2, strategy="textgrad", approve="edits", keep={"level": 0.45})
    thread = server.threads.create()["thread_id"]
    context = {"folder": str(run.folder.resolve())}

    def go(input_: Any = None, **options: Any) -> Any:
        server.runs.wait(thread, "adapt", input=input_, context=context, **options)
        return server.threads.get_state(thread)

    first: Any = run.first_state()
    assert go(first, interrupt_after=["classify"])["next"] == ["textgrad_edit"]  # stopped, and gone on with
    asked = go()
    assert asked["next"] == ["approve"]
    assert asked["tasks"][0]["interrupts"][0]["value"]["kind"] == "textgrad"
    assert go(command={"resume": {"answer": "accept"}})["next"] == ["approve"]
    ended = go(command={"resume": "reject"})["values"]
    assert [each["person"]["answer"] for each in ended["rounds"]] == ["accept", "reject"]
    assert read_json(run.folder / "result" / "report.json")["rounds"] == ended["rounds"]

    history: Any = server.threads.get_history(thread, limit=50)
    assert all(len(each["values"].get("rounds", [])) == each["values"].get("round", 0) for each in history)
    past = [each for each in history if each["next"] == ["monitor"]][-2]
    with pytest.raises(Exception, match=r"verdict: Input should be a valid dictionary \(came: 'kept'\)"):
        server.threads.update_state(thread, {"verdict": "kept"}, as_node="monitor")
    verdict = {**past["values"]["verdict"], "kept": not past["values"]["verdict"]["kept"]}
    branch: Any = server.threads.update_state(
        thread, {"verdict": verdict}, as_node="evaluate", checkpoint=past["checkpoint"]
    )
    assert go(checkpoint=branch["checkpoint"])["next"] == ["approve"]
    other = go(command={"resume": "reject"})["values"]
    assert (other["rounds"][0]["overruled"], other["rounds"][0]["kept"]) == (True, verdict["kept"])
    assert read_json(run.folder / "result" / "report.json")["rounds"] == other["rounds"]
    assert len(list(run.folder.glob("result.*"))) == 1

    end = next(each for each in server.threads.get_history(thread, limit=50) if each["next"] == ["finish"])
    before = read_json(run.folder / "result" / "report.json")
    go(checkpoint=end["checkpoint"])  # LangGraph's replay
    again = read_json(run.folder / "result" / "report.json")
    assert (again["result"], again["rounds"], again["test"]) == (before["result"], before["rounds"], before["test"])

    copied: Any = server.threads.copy(thread)  # a second thread, which has no folder of its own
    thread = copied["thread_id"]
    told: Any = server.runs.wait(thread, "adapt", input=first, context=context, raise_error=False)
    assert "give each thread a folder of its own" in json.dumps(told)
    fork = shutil.copytree(run.folder, tmp_path / "fork")
    for name in ("shown.json", "decisions.jsonl"):
        (fork / name).unlink()
    context = {"folder": str(fork)}
    past = next(each for each in server.threads.get_history(thread, limit=50) if each["next"] == ["classify"])
    assert go(checkpoint=past["checkpoint"])["next"] == ["approve"]
    assert go(command={"resume": "accept"})["values"]["rounds"][1]["person"] == {"answer": "accept"}
    assert read_json(fork / "result" / "report.json")["rounds"] != again["rounds"]
    assert read_json(run.folder / "result" / "report.json") == again
    with pytest.raises(RunError, match="has no checkpoints here"):
        run.replay(tmp_path / "replay")


@pytest.mark.engines
def test_a_thread_goes_on_after_its_server_was_killed(
    own_cache: Path, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """`langgraph dev` writes its store every 10 s: the folder may show more than the thread that goes on."""
    run = begin(max_rounds=2, strategy="textgrad", approve="edits", keep={"level": 0.45})
    context = {"folder": str(run.folder.resolve())}
    store = tmp_path / ".langgraph_api" / ".langgraph_checkpoint.1.pckl"
    first: Any = run.first_state()
    with serving(tmp_path) as (client, process):
        thread = client.threads.create()["thread_id"]
        client.runs.wait(thread, "adapt", input=first, context=context, interrupt_after=["classify"])
        now = time.time()
        while not (store.exists() and store.stat().st_mtime > now + 0.5):
            time.sleep(0.2)
        client.runs.wait(thread, "adapt", input=None, context=context)
        client.runs.wait(thread, "adapt", command={"resume": "accept"}, context=context)
        process.kill()
    assert len(read_jsonl(run.folder / "decisions.jsonl")) == 1
    with serving(tmp_path) as (client, _):
        assert client.threads.get_state(thread)["next"] == ["textgrad_edit"]
        for each in ({"input": None}, {"command": {"resume": "accept"}}, {"command": {"resume": "reject"}}):
            client.runs.wait(thread, "adapt", context=context, **each)
        ended: Any = client.threads.get_state(thread)["values"]
    assert [each["person"]["answer"] for each in ended["rounds"]] == ["accept", "reject"]
    assert read_json(run.folder / "result" / "report.json")["rounds"] == ended["rounds"]


@pytest.mark.parametrize("context", [None, {}, {"folder": ""}])
def test_a_graph_without_a_context_says_what_to_pass(begin: Callable[..., Run], context: Any) -> None:
    with pytest.raises(RunError, match=r"invoked without its context: pass context=run\.context"):
        make_graph().invoke(begin().first_state(), context=context)


def test_the_exported_graph_has_no_checkpointer_and_loads_no_model() -> None:
    assert make_graph().checkpointer is None
    code = (
        "import sys; from nslora.graph.server import make_graph; make_graph(); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'trl', 'textgrad')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
