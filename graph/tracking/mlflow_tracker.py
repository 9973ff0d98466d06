"""MLflow: a run of an experiment, at the tracking server that MLflow's own settings name.

Only MlflowClient is used: the fluent calls (`mlflow.start_run`) belong to the host, and keep their run by thread.
"""

import os
from collections.abc import Sequence
from itertools import islice
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from nslora.graph.tracking.tracker import Entry, Started, Status, TrackedRun

MOST_METRICS, MOST_PARAMS = 1000, 100  # in one request
PARAM_CHARACTERS = 6000
ENDED = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """Numbers are metrics, artefacts are artefacts; of texts, the run's `decisions.jsonl` is kept.

    How far it came stands in a tag of the run. What a killed process sent behind that is sent again, and not doubled:
    MLflow's database drops a metric that it has with the same step, time and value.
    """

    def __init__(self) -> None:
        found = mlflow.active_run()
        self.host: str | None = found.info.run_id if found else os.environ.get("MLFLOW_RUN_ID")
        self.place = mlflow.get_tracking_uri()
        self.named = mlflow.is_tracking_uri_set()

    def start(self, run: TrackedRun) -> Started:
        """Begin a run, go on with the known one, or add to the one that the host has open."""
        if run.place and not self.named and self.host is None:
            self.place = run.place
        self.client = MlflowClient(tracking_uri=self.place)
        self.tag = f"nslora.sent.{run.key}"
        found = self._found(self.host or run.known)
        if found is None:
            experiment = self._experiment(run.project)
            found = self.client.create_run(experiment, run_name=run.name)
        self.id: str = found.info.run_id
        if self.host is None and found.info.status != "RUNNING":
            self.client.update_run(self.id, status="RUNNING")
        self.before = "nslora/" if self.host else ""
        self._log_params(run, known=found.data.params)
        sent = found.data.tags.get(self.tag, "0")
        secret = "@" in self.place  # user and password in the URL
        return Started(
            self.id,
            f"run {self.id} of experiment {found.info.experiment_id} at {self.place}",
            None if secret else self.place,
            int(sent),
        )

    def _found(self, known: str | None) -> Any:
        """The run, unless somebody deleted it."""
        if known is None:
            return None
        try:
            found = self.client.get_run(known)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" and self.host is None:
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def _experiment(self, project: str | None) -> str:
        """The id of the experiment of that name; without a name, of the one that the environment names."""
        if project is None and (known := os.environ.get("MLFLOW_EXPERIMENT_ID")):
            return known
        name = project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "nslora"
        found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self.client.create_experiment(name))

    def _log_params(self, run: TrackedRun, known: dict[str, str]) -> None:
        """Log what is not there: MLflow lets no parameter change."""
        before = "nslora." if self.host else ""
        new = {f"{before}{name}": value for name, value in run.params.items() if f"{before}{name}" not in known}
        left = iter(new.items())
        while chunk := list(islice(left, MOST_PARAMS)):
            params = [Param(name, value[:PARAM_CHARACTERS]) for name, value in chunk]
            self.client.log_batch(self.id, params=params, synchronous=True)

    def log(self, entries: Sequence[Entry]) -> None:
        """Log metrics at their steps."""
        metrics = [
            Metric(f"{self.before}{name}", value, int(entry.at * 1000), entry.step)
            for entry in entries
            for name, value in entry.metrics.items()
        ]
        left = iter(metrics)
        while chunk := list(islice(left, MOST_METRICS)):
            self.client.log_batch(self.id, metrics=chunk, synchronous=True)
        self._sent(entries[-1])

    def store(self, entry: Entry) -> None:
        """Keep a file or a folder, under its name."""
        assert entry.artifact is not None
        folder, _, name = f"{self.before}{entry.artifact.name}".rpartition("/")
        if entry.artifact.path.is_dir():
            self.client.log_artifacts(self.id, str(entry.artifact.path), f"{folder}/{name}" if folder else name)
        else:
            self.client.log_artifact(self.id, str(entry.artifact.path), folder or None)
        self._sent(entry)

    def _sent(self, entry: Entry) -> None:
        self.client.log_batch(self.id, tags=[RunTag(self.tag, str(entry.number))], synchronous=True)

    def finish(self, status: Status) -> None:
        """End the run, unless it is the host's."""
        if self.host is None:
            self.client.set_terminated(self.id, ENDED[status])
