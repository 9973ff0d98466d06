"""What a run gives, to be exported: a base, an adapter on it, and the prompt that both were measured with."""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from nslora.tools.errors import ExportError
from nslora.tools.inference.weights import Notify, refuse_other_weights
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import Thinking
from nslora.tools.prompt import Prompt

SPARE = 1.05  # headers, tokenizer and configuration beside the weights


@dataclass(frozen=True)
class Pair:
    """Adapter and prompt of a finished run.

    Attributes:
        name: Of the run.
        model: The base, as the run's settings or `--base` name it.
        fingerprint: Of the base's weights, template and dtype when the run was made; "" if it is not on record.
        adapter: PEFT folder, named by its content hash; None if the weights stay as they are.
        prompt: The prompt.
        thinking: Whether replies begin with thinking.
        facts: What the model card and `nslora.json` say: task, test scores, hashes.
    """

    name: str
    model: str
    fingerprint: str
    adapter: Path | None
    prompt: Prompt
    thinking: Thinking = "off"
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """What the run computed in."""
        found = self.fingerprint.rpartition("-")[2]
        return "bfloat16" if found == "bfloat16" else "float16" if found == "float16" else "float32"

    @property
    def adapter_name(self) -> str | None:
        """The adapter's content hash, by which the loaded policy knows it."""
        return self.adapter.name if self.adapter else None

    def load(self, device: DeviceSettings | None = None, notify: Notify = lambda _: None) -> LocalPolicy:
        """Load the base, with the adapter at hand by its name.

        Args:
            device: Where and how to compute; None chooses by the machine.
            notify: Called with a sentence if weights are converted first.

        Raises:
            ModelError: If it cannot be loaded.
            RunError: If it is another one than the run's.
        """
        store = self.adapter.parent if self.adapter else Path("adapters")  # without adapter, nothing is taken there
        policy = LocalPolicy.load(self.model, adapters=store, device=device, thinking=self.thinking, notify=notify)
        if self.fingerprint:
            weights, found = (each.rpartition("-")[0] for each in (self.fingerprint, policy.fingerprint))
            refuse_other_weights(policy.name, f"{found}-", f"{weights}-")
        return policy

    def load_to_merge(self) -> LocalPolicy:
        """Load the base in float32 on the CPU, where weights are merged.

        Raises:
            ModelError, RunError: As `load` does.
            ExportError: If it is quantised.
        """
        policy = self.load(DeviceSettings(device="cpu", dtype="float32"))
        if getattr(policy.base.config, "quantization_config", None):
            raise ExportError(
                f"The base {policy.name} is quantised, and an adapter merged into rounded weights is another model: "
                "name the base in full precision (--base), or serve base and adapter as they are."
            )
        return policy


@contextmanager
def written_whole(target: Path, *, overwrite: bool = False, file: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `target`, which takes its name when the block ends without an error.

    file: `target` is a file, and a path in such a folder is yielded.

    Raises:
        ExportError: If `target` is there already, or the disk does not take it.
    """
    refuse_existing(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _new_partial(target)
    except OSError as error:
        raise ExportError(
            f"{target} cannot be written ({error.strerror}): name a folder that you may write."
        ) from error
    try:
        whole = partial / target.name if file else partial
        yield whole
        if target.is_dir():
            shutil.rmtree(target)
        whole.replace(target)
    except OSError as error:
        raise ExportError(
            f"{target} cannot be written ({error.strerror or error}): free some disk space, or name a folder on "
            "another disk."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _new_partial(target: Path) -> Path:
    """A new folder beside `target`, named by this process; those of processes that were killed are removed."""
    here = f".{target.name}-{socket.gethostname()}-"
    for left in target.parent.iterdir():
        number = left.name.removeprefix(here)
        if left.name.startswith(here) and number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    partial = target.with_name(f"{here}{os.getpid()}")
    partial.mkdir()
    return partial


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise ExportError if something stands at `target` that is not to be replaced."""
    if not overwrite and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise ExportError(f"{target} is there already: name a new folder, or replace it with --overwrite.")


def refuse_full_disk(folder: Path, size: float, what: str) -> None:
    """Raise ExportError if the disk of `folder` has no room for so many bytes."""
    there = next(each for each in (folder, *folder.resolve().parents) if each.is_dir())
    free = shutil.disk_usage(there).free
    if free < size * SPARE:
        seen = next(each for each in (there, *there.parents) if not each.name.startswith("."))  # not a partial one
        raise ExportError(
            f"{what} needs {size * SPARE / 1e9:.1f} GB in {seen}, where {free / 1e9:.1f} GB are free: free some disk "
            "space, or name a folder on another disk."
        )
