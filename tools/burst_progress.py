"""Progress of a burst on disk, so that a kill inside training costs one step.

All of it is safetensors and JSON: adapter, moments of AdamW, state of the random number generator, and the trainer's
log. A pointer file names the newest complete snapshot, and is replaced atomically after it.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from nslora.tools.files import write_json

LARGEST_SHARE = 0.05    # of a burst's time that snapshots may take
FREE_S = 3.0            # below this nobody minds
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class BurstProgress:
    """Snapshots of one burst in `folder`; without a folder nothing is written.

    start_optimizer: moments to begin with (those of the adapter that the burst continues), None for none.
    A snapshot is taken at every step, so that no step is done twice, unless snapshots come to cost more than
    `LARGEST_SHARE` of the burst. (Measured with SmolLM2-135M, rank 8 on ten blocks, a CPU: 10 MB and 2 % of a step.)
    """

    def __init__(self, folder: Path | None, start_optimizer: Path | None = None) -> None:
        self.folder = folder
        self._began, self._spent_s = time.monotonic(), 0.0
        self.start_optimizer = start_optimizer
        self.log: list[dict[str, float]] = []
        self.moments: dict[str, Any] = {}

    def restore(self, model: Any) -> int:
        """Put the newest snapshot into the model's active adapter; returns the steps it had done (0 without one)."""
        import torch
        from safetensors.torch import load_file

        if self.start_optimizer is not None and self.start_optimizer.is_file():
            self.moments = load_file(self.start_optimizer)
        snapshot = self._newest()
        if snapshot is None:
            return 0
        saved = load_file(snapshot / "adapter.safetensors")
        with torch.no_grad():
            for name, parameter in trainable(model):
                parameter.copy_(saved[name])
        self.moments = load_file(snapshot / "optimizer.safetensors")
        torch.set_rng_state(load_file(snapshot / "random.safetensors")["cpu"])
        self.log = json.loads((snapshot / "log.json").read_text(encoding="utf-8"))
        return len(self.log)

    def restore_optimizer(self, model: Any, optimizer: Any) -> None:
        """Give the optimizer the moments that belong to the restored (or continued) adapter."""
        if not self.moments:
            return
        for name, parameter in trainable(model):
            if f"{name}.step" in self.moments:
                optimizer.state[parameter] = {key: self.moments[f"{name}.{key}"].clone().to(
                    "cpu" if key == "step" else parameter.device) for key in MOMENTS}

    def after_step(self, model: Any, optimizer: Any, log: list[dict[str, float]]) -> None:
        """Take a snapshot, unless they have become too dear."""
        started = time.monotonic()
        if self.folder is None or self._spent_s > max(FREE_S, LARGEST_SHARE * (started - self._began)):
            return
        import torch
        from safetensors.torch import save_file

        snapshot = self.folder / f"step-{len(log)}"
        shutil.rmtree(snapshot, ignore_errors=True)
        snapshot.mkdir(parents=True)
        save_file({name: parameter.detach().clone() for name, parameter in trainable(model)},
                  snapshot / "adapter.safetensors")
        save_file(moments(model, optimizer), snapshot / "optimizer.safetensors")
        save_file({"cpu": torch.get_rng_state()}, snapshot / "random.safetensors")
        write_json(snapshot / "log.json", log)
        write_json(self.folder / "newest.json", {"snapshot": snapshot.name})
        for old in self.folder.glob("step-*"):
            if old != snapshot:
                shutil.rmtree(old, ignore_errors=True)
        self._spent_s += time.monotonic() - started

    def _newest(self) -> Path | None:
        if self.folder is None or not (self.folder / "newest.json").is_file():
            return None
        newest: str = json.loads((self.folder / "newest.json").read_text(encoding="utf-8"))["snapshot"]
        return self.folder / newest


def trainable(model: Any) -> list[tuple[str, Any]]:
    """(name, parameter) of everything that trains.

    Names leave out the number of the block: inside `without_trunk` it is another one. The order is the same, so a
    running number tells equal names apart.
    """
    found = [parameter for _, parameter in model.named_parameters() if parameter.requires_grad]
    return [(f"{i:05d}", parameter) for i, parameter in enumerate(found)]


def moments(model: Any, optimizer: Any) -> dict[str, Any]:
    """AdamW's state as named tensors."""
    named = {}
    for name, parameter in trainable(model):
        for key, value in optimizer.state.get(parameter, {}).items():
            named[f"{name}.{key}"] = value.detach().clone().contiguous()
    return named
