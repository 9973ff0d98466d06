"""Shared pieces: a tiny random model on disk, and caches that stay inside the test's folder."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from nslora.graph.runs.run import Run
from nslora.tools.policies.environment import prepare_environment
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.tasks.task import Task, load_task
from nslora.tools.testing.tiny_model import Family, write_tiny_model
from nslora.tools.testing.tiny_task import write_tiny_task
from nslora.tools.training.settings import LoraSettings

prepare_environment()
os.environ.setdefault("NSLORA_PAGE", "0")  # a page after each round of some hundred runs would take minutes
# A test asserts behaviour; how long an example takes depends on what else the machine does.
# The examples of `make test` are the same each time; `pytest --hypothesis-profile=explore` looks for new ones.
hypothesis_settings.register_profile("nslora", deadline=None, derandomize=True)
hypothesis_settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis_settings.load_profile("nslora")
# NSLORA_TEST_DEVICE=cuda: the tests of tiny policies on a GPU, in the float32 that they are exact in.
DEVICE = DeviceSettings(device=os.environ.get("NSLORA_TEST_DEVICE", "cpu"), dtype="float32", threads=1)
# Workers of pytest-xdist inherit the terminal's size (readline exports it), which a console would hold to for good.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: one that begins last keeps one core busy, and the other waits."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of tiny models by family, each written once.

    What the libraries keep in memory is left out of later collections: accelerate asks for two full ones a burst, and
    they took most of the time that a burst of a tiny model takes.
    """
    import peft  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    gc.collect()
    gc.freeze()
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
        return LocalPolicy.load(
            str(tiny_folder(family, chat_template)), adapters=tmp_path / "adapters", lora=settings, device=DEVICE
        )

    return policy


@pytest.fixture(scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A reply cache that this session's runs of tiny models share with nobody."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSLORA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A tiny task on disk."""
    return load_task(write_tiny_task(tmp_path_factory.mktemp("keepers"), rows=6))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """The tiny task, in the test's own folder."""
    return load_task(write_tiny_task(tmp_path / "task"))


@pytest.fixture
def begin(own_cache: Path, keepers: Task, tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Run]:
    """Begins runs of the tiny model on the tiny task: an edit, a burst, an edit, a burst, ..."""
    return lambda name="run", **settings: begin_tiny_run(tmp_path / name, keepers, tiny_folder(), **settings)


@pytest.fixture(scope="session")
def finished(
    own_cache: Path, keepers: Task, tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A finished run of three rounds (textgrad, lora, lora), to be looked at and never changed."""
    run = begin_tiny_run(
        tmp_path_factory.mktemp("runs") / "finished", keepers, tiny_folder(), strategy="textgrad -> lora"
    )
    run.adapt()
    return run


def begin_tiny_run(folder: Path, task: Task, model: Path, **settings: Any) -> Run:
    values: dict[str, Any] = {
        "strategy": "textgrad -> lora",
        "max_rounds": 3,
        "keep": {"level": 0.45},
        "lora": {"epochs": 2, "batch_size": 4, "learning_rate": 3e-2, "rank": 4, "top_blocks": 4},
        "device": DEVICE.model_dump(exclude_defaults=True),
    }
    return Run.create(folder, task=task, model=str(model), **{**values, **settings})
