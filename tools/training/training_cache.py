"""A run's cache of training jobs, `bursts.jsonl`.

A line contains the hash of a job's inputs (rows, seed, start, settings, base) and its adapter. So a task that was
killed after its job does not train again, a fork trains only the jobs that differ, and a replay trains nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nslora.tools.errors import DivergedError
from nslora.tools.files import append_jsonl, read_jsonl, sha256_of_json
from nslora.tools.inference.reply_cache import RENDERING
from nslora.tools.policy import OnStep, TrainingJob, TrainingResult, no_progress
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings

Train = Callable[[TrainingJob, OnStep], TrainingResult]


def job_sha256(job: TrainingJob, lora: LoraSettings, policy: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything that a training job's adapter depends on.

    Args:
        job: The training job.
        lora: Its settings.
        policy: The policy's `describe()` with its `fingerprint`. The device and the place of the adapter count, because
            a setting of None means something else on a CPU than on a GPU.
    """
    rows = [[list(row.dialogue), row.completion] for row in job.rows]
    place = [policy.get(name) for name in ("fingerprint", "device", "lora_targets")]
    place += [policy[name] for name in ("shards", "launched") if name in policy]
    return sha256_of_json([RENDERING, place, lora.model_dump(mode="json"), rows, job.epochs, job.seed, job.start])


class TrainingCache:
    """`bursts.jsonl` of one run; each look-up reads the file."""

    def __init__(self, path: Path, adapters: AdapterStore) -> None:
        self.path, self.adapters = path, adapters

    def find(self, request: str) -> dict[str, Any] | None:
        """Return the record of a training job, if it diverged or its adapter is still undamaged."""
        records: list[dict[str, Any]] = [row for row in read_jsonl(self.path) if row["request_sha256"] == request]
        return next((row for row in records if "error" in row or self.adapters.is_whole(row["adapter"])), None)

    def train_once(
        self, train: Train, job: TrainingJob, request: str, on_progress: OnStep = no_progress
    ) -> TrainingResult:
        """Return the recorded result of a training job, or train and record it.

        Args:
            train: Trains a job.
            job: The job.
            request: Its `job_sha256`.
            on_progress: Called with (steps done, all steps, `STEP_VALUES` of the step).

        Raises:
            DivergedError: If the job diverges, now or in its record.
        """
        record = self.find(request)
        reached: list[int] = []

        def remembered(done: int, total: int, values: Mapping[str, float] | None = None) -> None:
            reached[:] = done, total
            on_progress(done, total, values)

        if record is None:
            try:
                result = train(job, remembered)
            except DivergedError as error:
                append_jsonl(self.path, {"request_sha256": request, "error": str(error), "steps": reached})
                raise
            record = {"request_sha256": request, **asdict(result)}
            append_jsonl(self.path, record)
        if "error" in record:
            if record.get("steps"):  # this run pays for these steps too
                on_progress(*record["steps"])
            raise DivergedError(record["error"])
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        del values["request_sha256"]
        return TrainingResult(**values)
