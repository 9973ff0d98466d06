"""The policy that a run's settings ask for: in this process, or of an engine for replies and one for training."""

from pathlib import Path

from nslora.tools.errors import SettingsError
from nslora.tools.inference.weights import Notify
from nslora.tools.policies.composed import ComposedPolicy
from nslora.tools.policies.launched import LaunchedTraining
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import Policy, Thinking
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings


def refuse_unusable_engine(engine: EngineSettings, lora: LoraSettings) -> None:
    """Raise SettingsError if these engines cannot train or serve adapters of these settings."""
    if lora.batch_size % engine.shards:
        raise SettingsError(
            f"engine.shards is {engine.shards}, but lora.batch_size is {lora.batch_size}: make the batch a multiple of "
            "the shards."
        )


def open_policy(
    model: str,
    *,
    engine: EngineSettings,
    adapters: Path,
    lora: LoraSettings,
    device: DeviceSettings,
    thinking: Thinking,
    notify: Notify,
) -> Policy:
    """Load a model, and connect it with its engines.

    Args:
        model: The embedded model, a folder, or a hub id.
        engine: What replies and what trains.
        adapters: Folder of the adapters.
        lora: Settings of training jobs.
        device: Where and how to compute.
        thinking: Whether replies begin with thinking.
        notify: Called with a sentence if the embedded model is converted first.

    Raises:
        ModelError: If the model cannot be loaded, or not on this device.
        SettingsError: If the engines do not go with the settings.
    """
    refuse_unusable_engine(engine, lora)
    local = LocalPolicy.load(
        model, adapters=adapters, lora=lora, device=device, thinking=thinking, shards=engine.shards, notify=notify
    )
    if engine.launch == "local":
        return local
    training = LaunchedTraining(engine.launch, local.facts, lora, AdapterStore(adapters), engine.shards, device)
    # Of more than two shards, the order in which processes add them differs from that of one process.
    launched = {"launched": True} if engine.shards > 2 else {}
    return ComposedPolicy(
        local.facts, local, training, fingerprint=local.fingerprint, described={**local.describe(), **launched}
    )
