"""The four trackers themselves, in an environment of their own, by programs that are killed and go on."""

import json
import os
import signal
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
from fakes import CANARY
from tracked import STEPS, lines, sent

from nslora.tools.editor.llama_cpp import free_port

pytestmark = pytest.mark.engines
HERE = Path(__file__).parent
TRACKED = HERE.parents[1] / "tracked.py"
NAMES = ("mlflow", "wandb", "trackio", "tensorboard")
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the trackers' environment, which `make test-engines` makes."""
    found = Path(os.environ.get("NSLORA_TRACKERS", Path(sys.prefix) / "trackers" / "bin" / "python"))
    if not found.exists():
        pytest.skip("the trackers are not installed: make test-engines installs them")
    return found


def environment(folder: Path) -> dict[str, str]:
    """Every tracker stores below the folder, and the home folder and a key are known to be missed there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "WANDB", "TRACKIO"))}
    return kept | {
        # Not all of sys.path: the packages of .venv come behind those of the trackers' own environment.
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(TRACKED.parent)]),
        "HOME": str(folder / "home"),
        "OPENAI_API_KEY": CANARY,
        "NSLORA_CACHE": str(folder / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
    }


@pytest.fixture
def program(python: Path, tmp_path: Path) -> Program:
    """Runs a script in the trackers' environment."""
    (tmp_path / "home").mkdir()

    def run(*words: object, **changed: str) -> subprocess.CompletedProcess[str]:
        given = [str(python), *map(str, words)]
        where = environment(tmp_path) | changed
        return subprocess.run(given, env=where, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)

    return run


def held(program: Program, tracker: str, folder: Path, **changed: str) -> dict[str, Any]:
    """What the tracker holds of the run in `folder`."""
    uri = changed.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parents[1]}/mlflow.db")
    place = {"mlflow": uri, "trackio": folder.parents[1] / "trackio"}.get(tracker, folder)
    done = program(HERE / "read_back.py", tracker, place)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def steps(found: dict[str, Any], name: str) -> list[int]:
    return [step for step, _ in found["series"][name]]


def assert_whole(found: dict[str, Any]) -> None:
    """One run, with every step and round once."""
    assert len(found["runs"]) == 1
    assert steps(found, "train/loss_nats") == list(range(1, 2 * STEPS + 1))
    assert [value for _, value in found["series"]["train/loss_nats"]] == pytest.approx(
        [1 / step for step in range(1, 2 * STEPS + 1)]
    )
    assert (steps(found, "evaluation/reward"), steps(found, "round/kept")) == ([0, 1, 2, 3], [1, 2, 3])
    assert {"cost/wall_s", "result/test/gain/reward"} <= found["series"].keys()


@pytest.mark.parametrize("tracker", NAMES)
def test_a_killed_run_goes_on_in_the_same_run_of_its_tracker(program: Program, tmp_path: Path, tracker: str) -> None:
    folder = tmp_path / "home" / "run"
    for events in (9, -14):
        assert program(TRACKED, folder, tracker, events).returncode == -signal.SIGKILL
    done = program(TRACKED, folder, tracker, 0)
    assert done.returncode == 0, done.stderr
    assert "tracker" not in done.stderr
    found = held(program, tracker, folder)
    assert_whole(found)
    assert sent(folder, tracker) == lines(folder)
    assert found["status"] == {"mlflow": "FINISHED", "wandb": 0}.get(tracker)
    if tracker != "tensorboard":  # it takes no files
        assert sum(".md" in name for name in found["artifacts"]) == 3
        assert found["params"]["lora.rank"] == "8"
    told = json.dumps(found)
    assert CANARY not in told
    assert str(tmp_path / "home") not in told
    stores = [tmp_path / "trackio", *tmp_path.glob("mlruns"), folder / "tracking", *tmp_path.glob("mlflow.db")]
    files = [file for store in stores for file in (store, *store.rglob("*")) if file.is_file()]
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []


OPENED = {  # run, its id as i, and whether the host still has it
    "mlflow": """
import mlflow
i = mlflow.start_run().info.run_id
log, is_open, end = lambda: mlflow.log_metric("mine/a", 1.0), mlflow.active_run, mlflow.end_run
""",
    "wandb": """
import wandb
r = wandb.init(project="mine", dir={place!r})
i, log, is_open, end = r.id, lambda: r.log({{"mine/a": 1}}), lambda: wandb.run is r, r.finish
""",
    "trackio": """
import trackio
from trackio import context_vars
r = trackio.init(project="nslora", embed=False)
i, log, is_open, end = r.name, lambda: r.log({{"mine/a": 1}}), lambda: context_vars.current_run.get() is r, r.finish
""",
}


@pytest.mark.parametrize("tracker", OPENED)
def test_a_run_that_the_host_has_open_is_added_to_and_stays_open(
    program: Program, tmp_path: Path, tracker: str
) -> None:
    folder = tmp_path / "home" / "run"
    code = f"""
from pathlib import Path
Path({str(folder / "tracking")!r}).mkdir(parents=True)
from nslora.tools.tasks.task import load_task
from nslora.tools.testing.tiny_task import write_tiny_task
from tracked import tracked_run
{OPENED[tracker].format(place=str(folder / "tracking"))}
log()
task = load_task(write_tiny_task(Path({str(tmp_path / "task")!r}), rows=6))
tracked_run(Path({str(folder.parent / "other")!r}), task, track={tracker!r}).adapt()
assert is_open()
log()
end()
print("HELD", i)
"""
    done = program("-c", code)
    assert done.returncode == 0, done.stderr
    found = held(program, tracker, folder)
    assert found["runs"] == [done.stdout.split("HELD ")[-1].splitlines()[0]]
    assert [value for _, value in found["series"]["mine/a"]] == [1, 1]
    assert len(found["series"]["nslora/train/loss_nats"]) == 2 * STEPS


@contextmanager
def mlflow_server(python: Path, folder: Path, port: int) -> Iterator[str]:
    """MLflow's own server on loopback, with a SQLite store."""
    words = [
        "server",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/kept",
    ]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # If litellm is installed, the server imports it, and its download of prices locks up with MLflow's import hooks.
    where = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    words = [str(python), "-m", "mlflow", *words]
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder, env=where, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 400  # a loaded machine imports MLflow for minutes
        while True:
            assert server.poll() is None, (folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until, (folder / "server.log").read_text()
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_mlflow_by_its_own_server_which_dies_and_comes_back(program: Program, python: Path, tmp_path: Path) -> None:
    folder, port = tmp_path / "home" / "run", free_port()
    secret = {"MLFLOW_TRACKING_URI": f"http://someone:{CANARY}@127.0.0.1:{port}"}
    with mlflow_server(python, tmp_path, port):
        assert program(TRACKED, folder, "mlflow", 9, **secret).returncode == -signal.SIGKILL
        there = sent(folder, "mlflow")
    gone = program(TRACKED, folder, "mlflow", 0, TRACKING_TIMEOUT_S="3", **secret)
    assert gone.returncode == 0, gone.stderr
    assert gone.stderr.count("The tracker mlflow") == 1
    assert CANARY not in gone.stderr
    assert (folder / "result" / "report.json").exists()
    assert sent(folder, "mlflow") == there < lines(folder)
    with mlflow_server(python, tmp_path, port) as url:
        assert program(TRACKED, folder, "mlflow", 0, **secret).returncode == 0
        found = held(program, "mlflow", folder, MLFLOW_TRACKING_URI=url)
    assert_whole(found)
    assert "result/report.json" in found["artifacts"]
    assert CANARY not in (folder / "tracking" / "mlflow.json").read_text()


def test_wandb_whose_server_never_answers_holds_nothing_up(program: Program, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        changed = {
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "WANDB_API_KEY": "0" * 40,
            "TRACKING_TIMEOUT_S": "3",
        }
        folder = tmp_path / "home" / "run"
        done = program(TRACKED, folder, "wandb", 0, **changed)
        waited = time.time() - (folder / "result" / "report.json").stat().st_mtime
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("The tracker wandb has not") == 1
    assert "0" * 40 not in done.stderr
    assert waited < 85  # W&B itself waits for 90 s
