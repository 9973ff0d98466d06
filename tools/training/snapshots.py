"""Progress of a training job on disk, so that a kill inside training costs the step that was under way.

A snapshot is one safetensors file: the adapter and AdamW's moments, each as one vector (hundreds of small tensors take
longer to write than their bytes), and the state of the random number generator, with the trainer's log in its header.
It takes the place of the one before by a rename, so there is a whole one at any time.
"""

import json
import time
from pathlib import Path
from typing import Any

SNAPSHOT = "newest.safetensors"
LARGEST_SHARE = 0.05  # of a training job's time that snapshots may take
FREE_S = 3.0  # below this nobody minds
MATRICES = ("exp_avg", "exp_avg_sq")  # of AdamW's state, in the shape of the parameter
MOMENTS = (*MATRICES, "step")


class Snapshots:
    """Snapshots of one training job in `folder`; without a folder nothing is written.

    start_optimizer: moments to begin with (those of the adapter that the training job continues), None for none.
    A snapshot is taken at every step, so that no step is done twice, unless snapshots come to cost more than
    `LARGEST_SHARE` of the training job.
    """

    def __init__(self, folder: Path | None, start_optimizer: Path | None = None) -> None:
        self.folder = folder
        self._began, self._spent_s = time.monotonic(), 0.0
        self._saved = 0  # steps in the snapshot that this process took last
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
                # One that lacks a part, from another version, is refused like a damaged one.
                saved = {name: file.get_tensor(name) for name in {*file.keys(), "adapter", *MOMENTS}}
                log: list[dict[str, float]] = json.loads(file.metadata()["log"])
        except SafetensorError:
            # Not flushed to disk at every step, so a machine that lost power may leave it cut off: the training job
            # begins again, and ends with the same adapter.
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
                optimizer.state[parameter] = {
                    key: self.moments[f"{name}.{key}"].clone().to("cpu" if key == "step" else parameter.device)
                    for key in MOMENTS
                }

    def after_step(self, optimizer: Any, log: list[dict[str, float]]) -> None:
        """Take a snapshot, unless they have become too dear."""
        if self._spent_s <= max(FREE_S, LARGEST_SHARE * (time.monotonic() - self._began)):
            self.save(optimizer, log)

    def save(self, optimizer: Any, log: list[dict[str, float]]) -> None:
        """Take a snapshot of this step, unless there is one."""
        started = time.monotonic()
        if self.folder is None or len(log) == self._saved:
            return
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{SNAPSHOT}.partial"
        save_file(snapshot(optimizer), partial, metadata={"log": json.dumps(log)})
        partial.replace(self.folder / SNAPSHOT)
        self._saved = len(log)
        self._spent_s += time.monotonic() - started


def snapshot(optimizer: Any) -> dict[str, Any]:
    """Everything that the next step depends on: the optimizer's parameters and their moments, end to end."""
    import torch
    from torch.nn.utils import parameters_to_vector

    # In the order of `trainable`; walking through the modules for them takes longer than copying them.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # A parameter that has had no gradient yet has no state: zero steps.
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
    """(name, parameter) of everything that trains.

    Names are running numbers: inside `without_trunk` the blocks have others, and the order is the same.
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
