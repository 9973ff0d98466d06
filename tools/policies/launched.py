"""Training as a program of its own, by `accelerate launch`, `torchrun` or Ray Train: several GPUs, several machines.

The job is a folder on a disk that all machines share. The program's processes (`training_worker.py`) read `job.json`,
train together by the function that trains in this process, and the first one writes `result.json`. The graph never runs
there, and this process needs neither a GPU nor the weights.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from nslora.tools.errors import DamagedError, DivergedError, ModelError, SettingsError, StoppedError, TooLongError
from nslora.tools.files import read_json, read_jsonl, write_json, write_text
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.ray_cluster import on_ray
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import OnStep, TrainingJob, TrainingResult, no_progress
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings

JOB, RESULT, LEASE, STEPS = "job.json", "result.json", "lease", "steps.jsonl"
WORKER = "nslora.tools.policies.training_worker"
ON_RAY = "nslora.tools.policies.ray_training"
STARTS = 3  # of the program, for one job: a process that is killed costs the steps since the last snapshot
POLL_S, RENEW_S, STOP_S = 0.1, 5.0, 10.0  # looks at the program, renewals of its lease, time to end
REFUSALS = {each.__name__: each for each in (DamagedError, DivergedError, ModelError, SettingsError, TooLongError)}


@dataclass
class LaunchedTraining:
    """Trains by a launcher.

    Attributes:
        command: The launcher with its options, such as "torchrun --standalone --nproc_per_node 2", or a Ray cluster.
        facts: The model's facts.
        lora: Settings of training jobs.
        adapters: The store, on a disk that the program's machines share.
        shards: Parts of each batch, one for each process that the command starts.
        device: Where the processes compute.
        proves: Whether each new adapter gets a proof for the engine that replies.
    """

    command: str
    facts: ModelFacts
    lora: LoraSettings
    adapters: AdapterStore
    shards: int = 1
    device: DeviceSettings = field(default_factory=DeviceSettings)
    proves: bool = False

    def train(self, job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        """Train and store a new adapter. A program that ends without a result is started again, from its snapshot.

        Raises:
            DivergedError: If a loss is not finite or above its bound.
            ModelError: If the rows do not fit the context or the memory, or the program loads another model.
            SettingsError: If the command starts another number of processes than `shards`.
            StoppedError: If the command cannot be started, or the program ends without a result at every start.
        """
        plan = self.facts.plan(job, self.lora, self.shards)
        with tempfile.TemporaryDirectory() as scratch:
            folder = (job.progress or Path(scratch)).resolve()
            if (found := self._result(folder)) is not None:  # the program outlived the process that started it
                return found
            folder.mkdir(parents=True, exist_ok=True)
            place = self.facts.targets
            lora = self.lora.model_copy(
                update={"targets": tuple(place["target_modules"]), "top_blocks": len(place["layers_to_transform"])}
            )
            write_json(
                folder / JOB,
                {
                    "model": self.facts.source.location,
                    "name": self.facts.source.name,
                    "weights": self.facts.weights,
                    "thinking": self.facts.format.thinking,
                    "device": self.device.model_dump(mode="json"),
                    "lora": lora.model_dump(mode="json"),
                    "adapters": str(self.adapters.folder.resolve()),
                    "rows": [[row.prompt_ids, row.completion_ids] for row in plan.rows],
                    "epochs": job.epochs,
                    "seed": job.seed,
                    "pad_id": plan.pad_id,
                    "start": job.start,
                    "shards": self.shards,
                    "proves": self.proves,
                },
            )
            said = ""
            for _ in range(STARTS):
                (folder / RESULT).unlink(missing_ok=True)
                said = self._run(folder, on_progress)
                if (found := self._result(folder)) is not None:
                    return found
        raise StoppedError(
            f"The training program ended without a result at {STARTS} starts ({said or 'it said nothing'}): correct "
            f"engine.launch ({self.command}) or remove the cause, then resume."
        )

    def _result(self, folder: Path) -> TrainingResult | None:
        """Return what the program wrote, if its adapter is there; raise what it raised."""
        if not (folder / RESULT).is_file():
            return None
        found: dict[str, Any] = read_json(folder / RESULT)
        if "error" in found:
            kind, message = found["error"], found["message"]
            (folder / RESULT).unlink()  # whoever asks again shall train
            if kind == "OSError":
                raise OSError(found["errno"], message)
            raise REFUSALS[kind](message)
        if not self.adapters.is_whole(found["adapter"]):
            return None
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in found.items()
        }
        return TrainingResult(**values)

    def _run(self, folder: Path, on_progress: OnStep) -> str:
        """Run the program to its end, and return the last line that it said. An exception of `on_progress` ends it."""
        token, renewals, renewed, reported = uuid.uuid4().hex, 0, 0.0, len(read_jsonl(folder / STEPS))
        write_text(folder / LEASE, f"{token} 0")
        process = self._start(folder, token)
        last: deque[str] = deque(maxlen=20)
        reader = threading.Thread(target=_read_into, args=(process.stdout, last), daemon=True)
        reader.start()
        try:
            ended = False
            while not ended:
                ended = process.poll() is not None
                if time.monotonic() - renewed > RENEW_S:
                    renewals, renewed = renewals + 1, time.monotonic()
                    write_text(folder / LEASE, f"{token} {renewals}")
                for done, total, values in read_jsonl(folder / STEPS)[reported:]:
                    reported += 1
                    on_progress(done, total, values)
                time.sleep(0 if ended else POLL_S)
        finally:
            (folder / LEASE).unlink(missing_ok=True)  # for processes of the program that a signal does not reach
            _stop(process)
            reader.join(STOP_S)
        lines = [line for line in last if line.strip()]
        return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "").strip()[:300]

    def _start(self, folder: Path, token: str) -> subprocess.Popen[str]:
        """Start the launcher in a process group of its own; the programs of this environment come first."""
        own = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        ray = [sys.executable, "-m", ON_RAY, self.command]
        launcher = ray if on_ray(self.command) else [*shlex.split(self.command), "-m", WORKER]
        argv = [*launcher, str(folder), token]
        try:
            return subprocess.Popen(
                argv,
                env={**os.environ, "PATH": own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise StoppedError(
                f"engine.launch cannot be started ({error.strerror}: {argv[0]}): install it, or give its whole path, "
                "then resume."
            ) from error


def _read_into(stream: IO[str] | None, last: deque[str]) -> None:
    """Keep the last lines of what a program says; it would wait if nobody read."""
    for line in stream or ():
        last.append(line)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a program with its children, which outlive a launcher that was killed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def as_result(result: TrainingResult) -> str:
    """Write a result as the program hands it over."""
    return json.dumps(asdict(result))
