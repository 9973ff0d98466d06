"""Replies and training on two nodes of Ray, with kills; run by test_ray_engines.py in Ray's environment.

python ray_engines.py FOLDER    reads given.json there, and writes found.json
"""

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from ray_nodes import two_nodes

from nslora.tools.errors import StoppedError
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.opening import open_policy
from nslora.tools.policies.ray_cluster import connected
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.training.settings import LoraSettings

DEVICE = DeviceSettings(device="cpu", dtype="float32", threads=1)
# Until each row has a reply of its own.
LORA = LoraSettings(
    epochs=40, batch_size=4, learning_rate=0.02, early_stop_patience=None
)  # until each reply is its own


def actors() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [each for each in found if each.status() != "zombie" and "ray::Replier" in " ".join(each.cmdline())]


def main(folder: Path) -> None:
    model = json.loads((folder / "given.json").read_text())["model"]
    asked = [[{"role": "user", "content": f"Who keeps the {place}{' old' * i}?"}] for i, place in enumerate("abcdef")]
    rows = tuple(TrainingRow(tuple(each), "xyzuvw"[i] * 6, f"train-{i}", "reference") for i, each in enumerate(asked))
    named: dict[str, Any] = {"lora": LORA, "device": DEVICE, "thinking": "off"}
    local = LocalPolicy.load(model, adapters=folder / "here", shards=2, **named)
    job, said, found = TrainingJob(rows, LORA.epochs, seed=1), list[str](), dict[str, Any]()
    adapter = local.train(job).adapter
    os.environ["RAY_ADDRESS"] = "127.0.0.1:9"  # nobody there
    with suppress(StoppedError):
        connected("ray")
        raise AssertionError("no error")
    with two_nodes() as cluster:
        engine = EngineSettings(replies="ray", launch="ray", shards=2)
        one = {**named, "device": DEVICE.model_copy(update={"batch_size": 1})}  # so that an actor dies with rows left
        policy = open_policy(model, engine=engine, adapters=folder / "there", notify=said.append, **one)
        found["fingerprints"] = policy.fingerprint, local.fingerprint
        found["adapters"] = policy.train(job).adapter, adapter
        found["actors"] = len(actors())
        for name in (None, adapter):
            found[f"replies {name}"] = [
                asdict(each.generate(asked, adapter=name, max_new_tokens=12)) for each in (policy, local)
            ]
            found[f"losses {name}"] = [
                each.reference_losses(asked, [row.completion for row in rows], adapter=name) for each in (policy, local)
            ]
        killed: list[int] = []

        def kill(done: int, total: int) -> None:
            for actor in actors() if not killed else ():
                killed.append(actor.pid)
                os.kill(actor.pid, signal.SIGKILL)

        found["killed"] = [
            each.generate(asked, adapter=adapter, max_new_tokens=48, **options).replies
            for each, options in ((policy, {"on_progress": kill}), (local, {}))
        ]
        found["pids"] = killed
        cluster.remove_node(next(iter(cluster.worker_nodes)))
        found["one node"] = [
            each.generate(asked, adapter=adapter, max_new_tokens=4).replies for each in (policy, local)
        ]
    found["said"] = said
    (folder / "found.json").write_text(json.dumps(found, default=sorted))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
