"""The record of a run's training jobs, `bursts.jsonl`: what was trained once is not trained again.

A line holds the hash of what was asked for (rows, order, start, settings, base) and the adapter that came of it. A task
that was killed after its training job finds it here, a fork pays only for training jobs that differ, and a replay
trains nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nslora.tools.errors import DivergedError
from nslora.tools.files import append_jsonl, read_jsonl, sha256_of_json
from nslora.tools.inference.reply_cache import RENDERING
from nslora.tools.policy import OnProgress, TrainingJob, TrainingResult, no_progress
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings

Train = Callable[[TrainingJob, OnProgress], TrainingResult]


def job_sha256(job: TrainingJob, lora: LoraSettings, policy: Mapping[str, Any]) -> str:
    """The name of a training job: everything that its adapter depends on.

    policy: its fingerprint and what it says of itself; of the latter, the device and where the adapter sits (a setting
    that is left open means something else on a CPU than on a GPU).
    """
    rows = [[list(row.dialogue), row.completion] for row in job.rows]
    place = [policy.get(name) for name in ("fingerprint", "device", "lora_targets")]
    return sha256_of_json([RENDERING, place, lora.model_dump(mode="json"), rows, job.epochs, job.seed, job.start])


class TrainingCache:
    """`bursts.jsonl` of one run, read when it is asked."""

    def __init__(self, path: Path, adapters: AdapterStore) -> None:
        self.path, self.adapters = path, adapters

    def find(self, request: str) -> dict[str, Any] | None:
        """The record of this training job, if it diverged or its adapter is still there and whole."""
        for record in read_jsonl(self.path):
            if record["request_sha256"] == request and ("error" in record or self.adapters.is_whole(record["adapter"])):
                found: dict[str, Any] = record
                return found
        return None

    def train_once(
        self, train: Train, job: TrainingJob, request: str, on_progress: OnProgress = no_progress
    ) -> TrainingResult:
        """The recorded result of this training job, or a new one, recorded before its snapshots are cleared.

        Raises DivergedError as the training did, recorded or not.
        """
        record = self.find(request)
        reached: list[int] = []

        def remembered(done: int, total: int) -> None:
            reached[:] = done, total
            on_progress(done, total)

        if record is None:
            try:
                result = train(job, remembered)
            except DivergedError as error:
                append_jsonl(self.path, {"request_sha256": request, "error": str(error), "steps": reached})
                raise
            record = {"request_sha256": request, **asdict(result)}
            del record["log"]
            append_jsonl(self.path, record)
        if "error" in record:
            if record.get("steps"):  # what it cost is charged to this run as it was to the first
                on_progress(*record["steps"])
            raise DivergedError(record["error"])
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in record.items()
            if key != "request_sha256"
        }
        return TrainingResult(**values)
