"""The process of a `LocalExecutor`: reads one job a line, forks for it, and answers with its exit status.

The libraries are imported once, by `prepare` of the job's module, which creates no tensor and no thread: so a fork is
safe, and a job starts at once and leaves nothing behind for the next one.
"""

import json
import os
import signal
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from nslora.tools.errors import NsloraError, first_line
from nslora.tools.files import write_json


def main() -> None:
    """Work until stdin ends."""
    prepared = set()
    for line in sys.stdin:
        job = json.loads(line)
        module = job["function"].partition(":")[0]
        if module not in prepared:
            prepared.add(module)
            _prepare(module)
        child = os.fork()
        if not child:
            _work(job)
            return
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))  # noqa: B023  # waited for below
        _, status = os.waitpid(child, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _prepare(module: str) -> None:
    """Import what the jobs of a module need. An error in it is met again, and told, by the job."""
    try:
        getattr(import_module(module), "prepare", lambda: None)()
    except Exception:
        traceback.print_exc()


def _work(job: dict[str, Any]) -> None:
    """Call the job's function, and write what it returned, or one line on why it did not."""
    with open(job["log"], "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    write_json(Path(job["log"]).with_suffix(".json"), answer_of(job["function"], job["arguments"]))


def answer_of(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call `module:function`, and return {"result"}, or {"error"} with one line on why there is none."""
    module, _, name = function.partition(":")
    try:
        return {"result": getattr(import_module(module), name)(**arguments)}
    except NsloraError as error:
        return {"error": first_line(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {first_line(error)}"}


def _end_with_the_sweep() -> None:
    """End this process group when the process that asked for the job is gone: else its next try would meet a lock."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
