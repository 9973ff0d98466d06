"""Jobs for tests of the sweep's executor; each notes that it ran."""

import os
import signal
import sys
import time
from pathlib import Path

from nslora.tools.errors import SettingsError

PREPARED: list[int] = []


def prepare() -> None:
    PREPARED.append(os.getpid())


def noted(folder: str, name: str, do: str = "", wait_s: float = 0.0) -> dict[str, object]:
    with (Path(folder) / "ran").open("a") as file:
        file.write(f"{name}\n")
    print("said by", name)
    if do == "refuse":
        raise SettingsError("that cannot be")
    if do == "raise":
        raise ValueError("a bug")
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "drain":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    time.sleep(wait_s)
    return {"name": name, "worker": PREPARED, "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}
