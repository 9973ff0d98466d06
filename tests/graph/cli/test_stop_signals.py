"""Ctrl-C at a real command line: once is an orderly end, twice an end at once, and both can be resumed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nslora.graph.cli.stop_signals import report_when_stopped
from nslora.graph.lock import is_locked
from nslora.tools.tasks.task import Task

NSLORA = Path(sys.executable).with_name("nslora")
PATIENCE_S = 300  # seconds on a free machine; most of it is imports


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command, once it is inside a burst and has saved a step of its own."""
    snapshots = list(folder.glob("progress/*/newest.safetensors"))
    before = snapshots[0].read_bytes() if snapshots else b""
    process = subprocess.Popen(
        [NSLORA, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        snapshots = list(folder.glob("progress/*/newest.safetensors"))
        if snapshots and snapshots[0].read_bytes() != before:
            return process
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"no step of training was saved: {process.communicate()[0][-2000:]}")


def test_ctrl_c_ends_after_the_step_and_twice_at_once(
    own_cache: Path, keepers: Task, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = started(
        folder,
        "run",
        keepers.source,
        "--model",
        str(tiny_folder()),
        "--strategy",
        "lora",
        "--folder",
        str(folder),
        "--set",
        "lora.epochs=3000",
        "--set",
        "lora.early_stop_patience=null",
        "--set",
        "device.device=cpu",
        "--set",
        "lora.rank=2",
    )
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=PATIENCE_S)[0]
    assert run.returncode == 130
    assert f"nslora resume {folder}" in said
    assert not is_locked(folder)
    again = started(folder, "resume", str(folder))
    assert is_locked(folder)
    again.send_signal(signal.SIGTERM)
    again.send_signal(signal.SIGTERM)
    said = again.communicate(timeout=PATIENCE_S)[0]
    assert again.returncode == 143
    assert not is_locked(folder)
    assert list(folder.glob("progress/*/newest.safetensors"))


def test_a_command_that_keeps_nothing_says_so_when_it_is_stopped() -> None:
    said: list[str] = []
    with pytest.raises(SystemExit) as ended, report_when_stopped(said.append, "Stopped: nothing was written."):
        raise KeyboardInterrupt
    assert said == ["Stopped: nothing was written."]
    assert ended.value.code == 130
    with report_when_stopped(said.append, "never said"):
        pass
    assert len(said) == 1
