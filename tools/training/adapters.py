"""Adapters on disk: PEFT folders named by the hash of their content, which are never overwritten."""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.tools.errors import DamagedError
from nslora.tools.files import publish_folder, sha256_of_file, sha256_of_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"
ADAPTER_NAME = re.compile(r"[0-9a-f]{16}")
# The keys of PEFT's config that change a reply; the others may differ between versions.
CONFIG_KEYS = ("r", "lora_alpha", "target_modules", "layers_to_transform", "use_rslora", "use_dora", "bias")


@dataclass(frozen=True)
class AdapterStore:
    """A folder of adapters: `<folder>/<hash>/` contains PEFT's two files and the optimizer's state."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return an adapter's folder, after a check of its content hash.

        Raises:
            DamagedError: If the adapter is missing or damaged.
        """
        folder = self.folder / name
        if not ADAPTER_NAME.fullmatch(name) or not (folder / WEIGHTS).is_file():
            raise DamagedError(f"The adapter {name} is not in {self.folder}: restore the run's folder from a copy.")
        try:
            found = _content_hash(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"The adapter {folder} is damaged ({error}): restore it from a copy.") from error
        _check_optimizer(folder / OPTIMIZER)
        if found != name:
            raise DamagedError(f"The adapter {folder} is damaged, its content hash is {found}: restore it from a copy.")
        return folder

    def is_whole(self, name: str) -> bool:
        """Return whether the adapter is there and undamaged."""
        try:
            self.path(name)
        except DamagedError:
            return False
        return True

    def add(self, partial: Path) -> str:
        """Move a finished folder to the name of its content hash, and return the hash."""
        name = _content_hash(partial)
        if (self.folder / name).exists() and not self.is_whole(name):
            shutil.rmtree(self.folder / name)  # damaged: the new folder has the same content
        publish_folder(partial, self.folder / name)
        return name

    def take(self, folder: Path) -> str:
        """Copy a PEFT folder, without an optimizer's state, into the store, and return its content hash."""
        with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=".adapter-") as scratch:
            copy = Path(scratch) / "adapter"
            copy.mkdir()
            for file in (WEIGHTS, CONFIG):
                shutil.copyfile(folder / file, copy / file)
            self.folder.mkdir(parents=True, exist_ok=True)
            return self.add(copy)

    def export(self, name: str, target: Path) -> None:
        """Copy an adapter's PEFT files, without the optimizer's state, to the new folder `target`."""
        source = self.path(name)
        target.mkdir(parents=True)
        for file in (WEIGHTS, CONFIG):
            shutil.copyfile(source / file, target / file)


def _check_optimizer(path: Path) -> None:
    """Raise DamagedError if the file of an optimizer's state is there and cut off."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.is_file():
            safe_open(path, "numpy")  # reads the header and compares it with the file's length
    except SafetensorError as error:
        raise DamagedError(f"The optimizer state {path} is damaged ({error}): restore it from a copy.") from error


def _content_hash(folder: Path) -> str:
    """Return 16 hex characters over the tensors' bytes and the settings that change what they compute."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kept = {key: config.get(key) for key in CONFIG_KEYS}
    kept["lora_alpha"] = float(config["lora_alpha"])  # 16 and 16.0 are one setting
    kept["target_modules"] = sorted(config.get("target_modules") or ())
    return sha256_of_json([kept, sha256_of_file(folder / WEIGHTS)])[:16]
