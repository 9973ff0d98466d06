"""Places where a run can be killed, and a record of the cost until then. Installed in a child process only.

Each place has a name. `Places` counts them as the run passes them, and kills the process at the requested number.
Editor calls and training steps are written with one `os.write` per line, which survives a kill of the process.
"""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

NODES = ("evaluate", "monitor", "classify", "lora_update", "textgrad_edit", "approve", "finish")


class Places:
    """Writes each passed place to `folder/places`, and kills the process at number `kill_at` (from 0)."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.kill_at, self.number = kill_at, 0
        self._files = {
            name: os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for name in ("places", "calls", "steps")
        }

    def __call__(self, name: str) -> None:
        self.note("places", name)
        if self.number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.number += 1

    def note(self, file: str, line: str) -> None:
        os.write(self._files[file], f"{line}\n".encode())


def install(passed: Places) -> None:
    """Patch the places into the package: nodes, files, records, training, editor, checkpoints, engines."""
    nodes(passed)
    files(passed)
    training(passed)
    records(passed)
    engines(passed)


def around(owner: Any, name: str, passed: Places, title: str | Callable[..., str]) -> None:
    """Pass a place before and after each call of `owner.name`."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        words = title(*args) if callable(title) else title
        passed(f"{words}: before")
        result = inner(*args, **kwargs)
        passed(f"{words}: after")
        return result

    setattr(owner, name, wrapped)


def nodes(passed: Places) -> None:
    """Begin and end of each node. At the end its files are written, but its checkpoint is not."""
    from nslora.graph import build

    for name in NODES:
        around(build, name, passed, f"node {name}")


def files(passed: Places) -> None:
    """An atomic write when half of the text is written, and before and after each rename."""
    open_file, rename = Path.open, Path.replace

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = open_file(self, mode, *args, **kwargs)
        return HalfWay(file, passed) if mode == "x" else file

    def replace(self: Path, target: Any) -> Any:
        passed("file: before its name")
        done = rename(self, target)
        passed("file: after its name")
        return done

    Path.open = opened  # type: ignore[assignment, method-assign]
    Path.replace = replace  # type: ignore[assignment, method-assign]


class HalfWay:
    """A text file that passes a place when half of the text is written."""

    def __init__(self, file: Any, passed: Places) -> None:
        self.file, self.passed = file, passed

    def __enter__(self) -> "HalfWay":
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, text: str) -> int:
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        self.passed("file: half written")
        return int(self.file.write(text[len(text) // 2 :]))


def training(passed: Places) -> None:
    """After each optimizer step, before and after it is saved; and between the files of a snapshot or an adapter."""
    import safetensors.torch

    from nslora.tools.training.snapshots import Snapshots

    save = Snapshots.after_step

    def after_step(self: Any, optimizer: Any, log: list[dict[str, float]]) -> None:
        passed.note("steps", f"{self.folder.name} {len(log)}")
        passed("training: step done, not saved")
        save(self, optimizer, log)
        passed("training: step saved")

    Snapshots.after_step = after_step  # type: ignore[method-assign]
    around(safetensors.torch, "save_file", passed, "training: tensors")


def engines(passed: Places) -> None:
    """Requests to a server, and the start and the result of a training program. Requests pass from several threads."""
    from nslora.tools.policies.launched import LaunchedTraining
    from nslora.tools.policies.vllm_server import VllmServer

    around(VllmServer, "load", passed, "served: load")
    around(VllmServer, "reply", passed, "served: reply")
    around(VllmServer, "logprobs", passed, "served: loss")
    around(LaunchedTraining, "_start", passed, "launched: start")
    around(LaunchedTraining, "_result", passed, "launched: result")


def records(passed: Places) -> None:
    """The records of editor calls, training jobs, cached replies and checkpoints."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    from nslora.tools.editor.call_log import EditorLog
    from nslora.tools.inference.reply_cache import ReplyCache
    from nslora.tools.training import training_cache

    around(SqliteSaver, "put", passed, "checkpoint")
    around(SqliteSaver, "put_writes", passed, "checkpoint: writes")
    around(ReplyCache, "add", passed, "replies")
    around(training_cache, "append_jsonl", passed, "adapter record")  # `chosen` draws by the order of the names
    append = EditorLog.append

    def appended(self: Any, call: Any) -> None:
        append(self, call)
        passed("editor: call recorded")

    EditorLog.append = appended  # type: ignore[method-assign]
