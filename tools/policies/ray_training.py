"""The program of `engine.launch: ray`: a training job on Ray Train, in the same processes that a launcher would start.

python -m nslora.tools.policies.ray_training PLACE FOLDER TOKEN
"""

import sys
from pathlib import Path
from typing import Any

from nslora.tools.files import read_json
from nslora.tools.policies import training_worker
from nslora.tools.policies.launched import JOB
from nslora.tools.policies.ray_cluster import connected


def _work(given: dict[str, Any]) -> None:
    """Train as one process of the job."""
    training_worker.main(Path(given["folder"]), given["token"])


def main(place: str, folder: Path, token: str) -> None:
    """Start one worker for each shard, on GPUs if the job is for them or the cluster has any, and wait for all."""
    ray = connected(place, says=True)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job = read_json(folder / JOB)
    device = job["device"]["device"] or ("cuda" if ray.cluster_resources().get("GPU") else "cpu")
    gpu = device.startswith("cuda")
    TorchTrainer(
        _work,
        train_loop_config={"folder": str(folder), "token": token},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=job["shards"], use_gpu=gpu),
        run_config=RunConfig(name="ray", storage_path=str(folder)),  # whoever launched tries again
    ).fit()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
