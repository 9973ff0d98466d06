"""Shared pieces: a tiny random model on disk, and caches that stay inside the test's folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nslora.tools.local_policy import LocalPolicy, prepare_environment
from nslora.tools.settings import DeviceSettings, LoraSettings
from nslora.tools.tiny_model import Family, write_tiny_model

prepare_environment()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of tiny models by family, each written once."""
    made: dict[tuple[str, bool], Path] = {}

    def folder(family: Family = "llama", chat_template: bool = True) -> Path:
        key = (family, chat_template)
        if key not in made:
            made[key] = write_tiny_model(tmp_path_factory.mktemp(family), family, chat_template=chat_template)
        return made[key]

    return folder


@pytest.fixture
def tiny_policy(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., LocalPolicy]:
    """A policy over a tiny model; its adapters live in the test's folder."""

    def policy(family: Family = "llama", chat_template: bool = True, **lora: object) -> LocalPolicy:
        settings = LoraSettings(**{"epochs": 3, "batch_size": 4, **lora})  # type: ignore[arg-type]
        return LocalPolicy.load(str(tiny_folder(family, chat_template)), adapters=tmp_path / "adapters", lora=settings,
                                device=DeviceSettings(device="cpu", threads=1))

    return policy
