"""Progress of a burst on disk, so that a kill inside training costs the step that was under way.

A snapshot is one safetensors file: the adapter, AdamW's moments and the state of the random number generator, with the
trainer's log in its header. It takes the place of the one before by a rename, so there is a whole one at any time.
"""

import json
import time
from pathlib import Path
from typing import Any

SNAPSHOT = "newest.safetensors"
LARGEST_SHARE = 0.05    # of a burst's time that snapshots may take
FREE_S = 3.0            # below this nobody minds
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class BurstProgress:
    """Snapshots of one burst in `folder`; without a folder nothing is written.

    start_optimizer: moments to begin with (those of the adapter that the burst continues), None for none.
    A snapshot is taken at every step, so that no step is done twice, unless snapshots come to cost more than
    `LARGEST_SHARE` of the burst.
    """

    def __init__(self, folder: Path | None, start_optimizer: Path | None = None) -> None:
        self.folder = folder
        self._began, self._spent_s = time.monotonic(), 0.0
        self.start_optimizer = start_optimizer
        self.log: list[dict[str, float]] = []
        self.moments: dict[str, Any] = {}
        self._random: dict[str, Any] = {}

    def restore(self, model: Any) -> int:
        """Put the newest snapshot into the model's active adapter; returns the steps it had done (0 without one)."""
        import torch
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        if self.start_optimizer is not None and self.start_optimizer.is_file():
            self.moments = load_file(self.start_optimizer)
        if self.folder is None or not (self.folder / SNAPSHOT).is_file():
            return 0
        try:
            with safe_open(self.folder / SNAPSHOT, "pt") as file:
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                self.log = json.loads(file.metadata()["log"])
        except SafetensorError:
            # Not flushed to disk at every step, so a machine that lost power may leave it cut off: the burst begins
            # again, and ends with the same adapter.
            (self.folder / SNAPSHOT).unlink()
            return 0
        with torch.no_grad():
            for name, parameter in trainable(model):
                parameter.copy_(saved[f"adapter.{name}"])
        self.moments = {name.removeprefix("moments."): value for name, value in saved.items()
                        if name.startswith("moments.")}
        self._random = {name: value for name, value in saved.items() if name.startswith("random.")}
        return len(self.log)

    def restore_random(self) -> None:
        """Put the generators back to where the snapshot was taken; later calls do nothing.

        To be called when the first step begins: making a trainer and a data loader draws from them.
        """
        import torch

        if "random.cpu" in self._random:
            torch.set_rng_state(self._random["random.cpu"])
        if "random.cuda" in self._random:
            torch.cuda.set_rng_state(self._random["random.cuda"])
        self._random = {}

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
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{SNAPSHOT}.partial"
        save_file(snapshot(model, optimizer), partial, metadata={"log": json.dumps(log)})
        partial.replace(self.folder / SNAPSHOT)
        self._spent_s += time.monotonic() - started


def snapshot(model: Any, optimizer: Any) -> dict[str, Any]:
    """Everything that the next step depends on, as named tensors."""
    import torch

    tensors = {f"adapter.{name}": parameter.detach().contiguous() for name, parameter in trainable(model)}
    tensors |= {f"moments.{name}": value for name, value in moments(model, optimizer).items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if next(model.parameters()).device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


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
