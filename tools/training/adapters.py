"""Adapters on disk: PEFT folders named by the hash of their content, written once, never overwritten."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.tools.errors import DamagedError
from nslora.tools.files import publish_folder, sha256_of_file, sha256_of_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"
ADAPTER_NAME = re.compile(r"[0-9a-f]{16}")
# What changes a reply; the rest of PEFT's config is bookkeeping that may differ between versions.
CONFIG_KEYS = ("r", "lora_alpha", "target_modules", "layers_to_transform", "use_rslora", "use_dora", "bias")


@dataclass(frozen=True)
class AdapterStore:
    """A folder of adapters: `<folder>/<hash>/` holds PEFT's two files and, beside them, the optimizer's moments."""

    folder: Path

    def path(self, name: str) -> Path:
        """The folder of an adapter whose weights still have the hash that they were stored under.

        Raises DamagedError where it is missing or damaged.
        """
        folder = self.folder / name
        if not ADAPTER_NAME.fullmatch(name) or not (folder / WEIGHTS).is_file():
            raise DamagedError(
                f"No adapter {name} in {self.folder}: it was deleted, or the run's folder was moved in part."
            )
        try:
            found = content_hash(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"The adapter {folder} is damaged ({error}).") from error
        check_optimizer(folder / OPTIMIZER)
        if found != name:
            raise DamagedError(f"The adapter {folder} is damaged: its content no longer has the hash in its name.")
        return folder

    def is_whole(self, name: str) -> bool:
        """Whether the adapter is there and undamaged."""
        try:
            self.path(name)
        except DamagedError:
            return False
        return True

    def add(self, partial: Path) -> str:
        """Take over a finished folder under the hash of its content; returns the hash."""
        name = content_hash(partial)
        if (self.folder / name).exists() and not self.is_whole(name):
            shutil.rmtree(self.folder / name)  # damaged; this is what it was
        publish_folder(partial, self.folder / name)
        return name

    def export(self, name: str, target: Path) -> None:
        """Copy an adapter as plain PEFT files (without optimizer state) to `target`."""
        source = self.path(name)
        target.mkdir(parents=True)
        for file in (WEIGHTS, CONFIG):
            shutil.copyfile(source / file, target / file)


def check_optimizer(path: Path) -> None:
    """Raise DamagedError where the moments of an adapter, if it has any, are cut off."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.is_file():
            with safe_open(path, "numpy"):  # reads the header, and compares it with the file's length
                pass
    except SafetensorError as error:
        raise DamagedError(f"The optimizer state {path} is damaged ({error}).") from error


def content_hash(folder: Path) -> str:
    """16 hex characters over the tensors' bytes and the settings that change what they compute."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kept = {key: config.get(key) for key in CONFIG_KEYS}
    kept["lora_alpha"] = float(config["lora_alpha"])  # 16 and 16.0 are one setting
    kept["target_modules"] = sorted(config.get("target_modules") or ())
    return sha256_of_json([kept, sha256_of_file(folder / WEIGHTS)])[:16]
