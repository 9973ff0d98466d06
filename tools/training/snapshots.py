"""Snapshots of a training job on disk: a kill loses only the step in progress.

A snapshot is one safetensors file: the adapter and AdamW's state, each as one vector (many small tensors take longer to
write), the state of the random number generators, and the trainer's log in the header. A rename replaces the previous
snapshot, so a complete one exists at any time.
"""

import json
import time
from pathlib import Path
from typing import Any

SNAPSHOT = "newest.safetensors"
LARGEST_SHARE = 0.05  # of a training job's time for snapshots
FREE_S = 3.0  # seconds for snapshots whatever their share
MATRICES = ("exp_avg", "exp_avg_sq")  # AdamW's state in the shape of the parameter
MOMENTS = (*MATRICES, "step")


class Snapshots:
    """Snapshots of one training job.

    Each step takes a snapshot, unless snapshots cost more than `LARGEST_SHARE` of the job's time.

    Attributes:
        folder: Folder of the snapshots; None writes none.
        writes: Whether this process writes them; of several that train together, one does.
        start_optimizer: File of the optimizer state to begin with, from the adapter that the job continues.
        log: The trainer's log in the restored snapshot.
        moments: The restored optimizer state.
    """

    def __init__(self, folder: Path | None, start_optimizer: Path | None = None, *, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self._began, self._spent_s = time.monotonic(), 0.0
        self._saved = 0  # steps in this process's last snapshot
        self.start_optimizer = start_optimizer
        self.log: list[dict[str, float]] = []
        self.moments: dict[str, Any] = {}
        self._random: dict[str, Any] = {}

    def restore(self, model: Any) -> int:
        """Load the newest snapshot into the model's active adapter, and return its number of steps (0 without one)."""
        import torch
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        if self.start_optimizer is not None and self.start_optimizer.is_file():
            self.moments = load_file(self.start_optimizer)
        if self.folder is None or not (self.folder / SNAPSHOT).is_file():
            return 0
        try:
            with safe_open(self.folder / SNAPSHOT, "pt") as file:
                # A snapshot of another version lacks a part; it is treated as damaged.
                saved = {name: file.get_tensor(name) for name in {*file.keys(), "adapter", *MOMENTS}}
                log: list[dict[str, float]] = json.loads(file.metadata()["log"])
        except SafetensorError:
            # Snapshots are not flushed to disk, so a power failure can cut one off: the job begins again, and ends with
            # the same adapter.
            (self.folder / SNAPSHOT).unlink()
            return 0
        named = trainable(model)
        sizes = [parameter.numel() for _, parameter in named]
        with torch.no_grad():
            for (_, parameter), part in zip(named, saved["adapter"].split(sizes), strict=True):
                parameter.copy_(part.view_as(parameter))
        states = zip(*(saved[key].split(sizes) for key in MATRICES), saved["step"], strict=True)
        self.moments = {
            f"{name}.{key}": value.view_as(parameter) if key in MATRICES else value
            for (name, parameter), state in zip(named, states, strict=True)
            if state[-1] > 0
            for key, value in zip(MOMENTS, state, strict=True)
        }
        self._random = {name: value for name, value in saved.items() if name.startswith("random.")}
        self.log = log
        return len(log)

    def restore_random(self) -> None:
        """Restore the random number generators; later calls do nothing.

        Call it at the first step, because making a trainer and a data loader draws random numbers.
        """
        import torch

        if "random.cpu" in self._random:
            torch.set_rng_state(self._random.pop("random.cpu"))
        if "random.cuda" in self._random:
            torch.cuda.set_rng_state(self._random.pop("random.cuda"))

    def restore_optimizer(self, model: Any, optimizer: Any) -> None:
        """Load the restored state, or that of the continued adapter, into the optimizer."""
        for name, parameter in trainable(model):
            if f"{name}.step" in self.moments:
                optimizer.state[parameter] = {
                    key: self.moments[f"{name}.{key}"].clone().to("cpu" if key == "step" else parameter.device)
                    for key in MOMENTS
                }

    def after_step(self, optimizer: Any, log: list[dict[str, float]]) -> None:
        """Take a snapshot, unless snapshots cost too much time."""
        if self._spent_s <= max(FREE_S, LARGEST_SHARE * (time.monotonic() - self._began)):
            self.save(optimizer, log)

    def save(self, optimizer: Any, log: list[dict[str, float]]) -> None:
        """Take a snapshot of this step, unless it has one."""
        started = time.monotonic()
        if self.folder is None or not self.writes or len(log) == self._saved:
            return
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{SNAPSHOT}.partial"
        save_file(_snapshot(optimizer), partial, metadata={"log": json.dumps(log)})
        partial.replace(self.folder / SNAPSHOT)
        self._saved = len(log)
        self._spent_s += time.monotonic() - started


def _snapshot(optimizer: Any) -> dict[str, Any]:
    """Collect everything that the next step depends on: parameters and optimizer state as vectors, random state."""
    import torch
    from torch.nn.utils import parameters_to_vector

    # In the order of `trainable`, which walks through the modules; that takes longer than the copy.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # A parameter without a gradient so far has no state: zero steps.
    states = [
        optimizer.state.get(parameter)
        or {"step": torch.zeros(()), **dict.fromkeys(MATRICES, torch.zeros_like(parameter))}
        for parameter in parameters
    ]
    with torch.no_grad():
        tensors = {"adapter": parameters_to_vector(parameters)}
        tensors |= {key: parameters_to_vector([state[key] for state in states]) for key in MATRICES}
    tensors["step"] = torch.stack([state["step"] for state in states])
    tensors["random.cpu"] = torch.get_rng_state()
    if parameters[0].device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def trainable(model: Any) -> list[tuple[str, Any]]:
    """List (name, parameter) of all trainable parameters.

    The names are running numbers, because `without_trunk` changes the names of blocks but not their order.
    """
    found = [parameter for _, parameter in model.named_parameters() if parameter.requires_grad]
    return [(f"{i:05d}", parameter) for i, parameter in enumerate(found)]


def moments(model: Any, optimizer: Any) -> dict[str, Any]:
    """Return AdamW's state as named tensors."""
    return {
        f"{name}.{key}": value.detach().clone().contiguous()
        for name, parameter in trainable(model)
        for key, value in optimizer.state.get(parameter, {}).items()
    }
