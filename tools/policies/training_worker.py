"""One process of a launched training job: `LAUNCHER -m nslora.tools.policies.training_worker FOLDER TOKEN`.

All processes train together; the first one tells the steps and writes the result. A job whose lease another program has
taken, or that nobody waits for, is given up at the next step.

The token tells this program from a later one for the same job.
"""

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nslora.tools.errors import ModelError, NsloraError, SettingsError
from nslora.tools.files import append_jsonl, read_json, write_json, write_text
from nslora.tools.policies.environment import best_device
from nslora.tools.policies.launched import JOB, LEASE, REFUSALS, RESULT, STEPS, as_result
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import TrainingJob
from nslora.tools.training.batches import BatchPlan, TokenRow
from nslora.tools.training.processes import is_first, processes
from nslora.tools.training.settings import LoraSettings

LEASE_S = 60.0  # after which a job is given up whose lease is not renewed
GIVEN_UP = 75  # exit status, EX_TEMPFAIL
OF_RUST = re.compile(r"\(os error (\d+)\)")  # as safetensors writes what the system said


class Lease:
    """Tells whether somebody still waits for this job, and steps are still wanted from this program."""

    def __init__(self, file: Path, token: str) -> None:
        self.file, self.token = file, token
        self._seen, self._since = "", time.monotonic()

    def check(self) -> None:
        """Exit if the job has passed to another program, or was not renewed between two checks that far apart."""
        found, now = self.file.read_text(encoding="utf-8") if self.file.exists() else "", time.monotonic()
        if found.partition(" ")[0] != self.token or (found == self._seen and now - self._since > LEASE_S):
            print("nobody waits for this training job any more", file=sys.stderr)
            os._exit(GIVEN_UP)  # at once: the other processes wait in a collective operation
        if found != self._seen:
            self._seen, self._since = found, now


def refuse_launcher(shards: int) -> None:
    """Raise SettingsError if the launcher started another number of processes than shards, or divides the model."""
    if any(os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("1", "true") for kind in ("FSDP", "DEEPSPEED")):
        raise SettingsError(
            "engine.launch divides the model by FSDP or DeepSpeed, but here each process holds all of it: use the "
            "configuration MULTI_GPU of `accelerate config`."
        )
    if (found := processes()) != shards:
        raise SettingsError(
            f"engine.shards is {shards}, but engine.launch started {found} process{'es' * (found > 1)}: make the two "
            "equal (on CPUs `accelerate launch` starts one, whatever is asked: use torchrun --nproc_per_node)."
        )


def trained(folder: Path, job: dict[str, Any], token: str) -> str:
    """Train the job of a folder, and return its result as JSON."""
    refuse_launcher(job["shards"])
    device = DeviceSettings(**job["device"])
    if (device.device or best_device()).startswith("cuda"):
        import torch

        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    lora = LoraSettings(**job["lora"])
    policy = LocalPolicy.load(
        job["model"],
        adapters=Path(job["adapters"]),
        lora=lora,
        device=device,
        thinking=job["thinking"],
        shards=job["shards"],
        proves=job["proves"],
    )
    policy.base.name_or_path = job["name"]
    if policy.facts.weights != job["weights"]:
        raise ModelError(
            f"The training program found other weights at {job['model']} (hash {policy.facts.weights}, wanted "
            f"{job['weights']}): give its machines the model of the run."
        )
    rows = tuple(TokenRow(tuple(prompt), tuple(completion)) for prompt, completion in job["rows"])
    plan = BatchPlan(rows, job["epochs"], job["seed"], job["pad_id"], lora, job["shards"])
    lease = Lease(folder / LEASE, token)

    def on_progress(done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        lease.check()
        if is_first():
            append_jsonl(folder / STEPS, [done, total, values])

    given = TrainingJob((), job["epochs"], job["seed"], job["start"], folder)
    return as_result(policy.train_plan(plan, given, on_progress))


def main(folder: Path, token: str) -> None:
    """Train, and write the result or the reason why there is none."""
    try:
        result = trained(folder, read_json(folder / JOB), token)
    except (NsloraError, OSError, SafetensorError) as error:
        if isinstance(error, NsloraError):
            kind = type(error).__name__
            write_json(folder / RESULT, {"error": kind if kind in REFUSALS else "ModelError", "message": str(error)})
        elif is_first() and (found := getattr(error, "errno", None) or OF_RUST.search(str(error))):
            number = found if isinstance(found, int) else int(found[1])
            write_json(folder / RESULT, {"error": "OSError", "message": os.strerror(number), "errno": number})
        print(f"Error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # at once: the other processes wait in a collective operation
    if is_first():
        write_text(folder / RESULT, result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
