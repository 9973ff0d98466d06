"""What a tracker holds, read back by the tracker's own means: python read_back.py TRACKER PLACE, as JSON.

PLACE is MLflow's URI, trackio's folder, or the run's folder. "series" holds [step, value] in the order of the store;
of the trackers that number rows by themselves, the step is the training step or the round.
"""

import json
import os
import sqlite3
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def mlflow(place: str) -> Found:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=place)
    runs = [
        run for each in client.search_experiments() for run in client.search_runs([each.experiment_id], max_results=50)
    ]
    run = runs[0]

    def names(folder: str | None = None) -> list[str]:
        return [
            name
            for each in client.list_artifacts(run.info.run_id, folder)
            for name in (names(each.path) if each.is_dir else [each.path])
        ]

    series = {
        key: [[each.step, each.value] for each in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    return {
        "runs": [each.info.run_id for each in runs],
        "status": run.info.status,
        "series": series,
        "artifacts": names(),
        "params": run.data.params,
        "tags": run.data.tags,
    }


def rows_as_series(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    series: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        step = row.get("training_step", row.get("round"))
        for name, value in row.items():
            if "/" in name and isinstance(value, int | float):
                series[name].append([step, value])
    return series


def wandb(place: str) -> Found:
    from wandb.proto import wandb_internal_pb2

    from nslora.graph.tracking.wandb_tracker import _records

    rows, numbers, artifacts, params, runs, status = [], [], [], {}, set(), None
    for file in sorted(Path(place).glob("tracking/wandb/offline-run-*/*.wandb")):
        for body in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = {
                    "/".join((*each.nested_key, each.key)[:1] if each.key else each.nested_key): json.loads(
                        each.value_json
                    )
                    for each in record.history.item
                }
                rows.append(row)
                numbers.append(row["_step"])
            elif kind == "run":
                runs.add(record.run.run_id)
                params = {each.key: json.loads(each.value_json) for each in record.run.config.update} or params
            elif kind == "artifact":
                artifacts.append(record.artifact.name)
            elif kind == "exit":
                status = record.exit.exit_code
    assert len(set(numbers)) == len(numbers), numbers
    return {
        "runs": sorted(runs),
        "status": status,
        "series": rows_as_series(rows),
        "artifacts": artifacts,
        "params": params,
    }


def trackio(place: str) -> Found:
    os.environ["TRACKIO_DIR"] = place
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(Api().runs("nslora"))
    with sqlite3.connect(SQLiteStorage.get_project_db_path("nslora")) as store:
        rows = [json.loads(each[0]) for each in store.execute("SELECT metrics FROM metrics ORDER BY id")]
        artifacts = [each[0] for each in store.execute("SELECT name FROM artifacts")]
    return {
        "runs": [each.name for each in runs],
        "status": None,
        "series": rows_as_series(rows),
        "artifacts": artifacts,
        "params": runs[0].config,
    }


def tensorboard(place: str) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(f"{place}/tracking/tensorboard", size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    tags = found.Tags()
    return {
        "runs": [Path(place).name],
        "status": None,
        "series": {name: [[each.step, each.value] for each in found.Scalars(name)] for name in tags["scalars"]},
        "artifacts": tags["tensors"],
        "params": {},
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
