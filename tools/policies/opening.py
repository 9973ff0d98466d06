"""The policy that a run's settings ask for: in this process, or of an engine for replies and one for training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nslora.tools.errors import SettingsError
from nslora.tools.inference.weights import Notify
from nslora.tools.policies.composed import ComposedPolicy
from nslora.tools.policies.environment import best_device
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.launched import LaunchedTraining
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.ray_cluster import on_ray, refuse_missing_ray
from nslora.tools.policies.ray_replies import RayReplies
from nslora.tools.policies.served import ServedReplies
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import OnStep, Policy, Thinking, TrainingEngine, TrainingJob, TrainingResult, no_progress
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings


@dataclass
class LocalTraining:
    """Trains in this process, and loads the weights for the first job."""

    load: Callable[[], LocalPolicy]

    @cached_property
    def policy(self) -> LocalPolicy:
        """The model."""
        return self.load()

    def train(self, job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        """Train and store a new adapter."""
        return self.policy.train(job, on_progress)


def refuse_unusable_engine(engine: EngineSettings, lora: LoraSettings) -> None:
    """Raise SettingsError if these engines cannot train or serve adapters of these settings."""
    if lora.batch_size % engine.shards:
        raise SettingsError(
            f"engine.shards is {engine.shards}, but lora.batch_size is {lora.batch_size}: make the batch a multiple of "
            "the shards."
        )
    for name in ("replies", "launch"):
        if on_ray(getattr(engine, name)):
            refuse_missing_ray(f"engine.{name}=ray")
    if isinstance(engine.replies, tuple) and lora.use_dora:
        raise SettingsError("lora.use_dora is on, but vLLM serves no DoRA: turn it off, or let this process reply.")


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
    """Load a model, or connect with engines; weights are loaded only for what this process does.

    Args:
        model: The embedded model, a folder, or a hub id.
        engine: What replies and what trains.
        adapters: Folder of the adapters.
        lora: Settings of training jobs.
        device: Where and how to compute; what a training program uses, too.
        thinking: Whether replies begin with thinking.
        notify: Called with remarks of the engines, and if the embedded model is converted first.

    Raises:
        ModelError: If the model cannot be loaded, or an engine cannot be used.
        SettingsError: If the engines do not go with the settings.
        StoppedError: If a server cannot be reached.
    """
    refuse_unusable_engine(engine, lora)
    served, store = isinstance(engine.replies, tuple), AdapterStore(adapters)
    named: dict[str, Any] = {"adapters": adapters, "lora": lora, "device": device, "thinking": thinking}

    def load() -> LocalPolicy:
        return LocalPolicy.load(model, shards=engine.shards, proves=served, notify=notify, **named)

    def training(facts: ModelFacts) -> TrainingEngine:
        if engine.launch == "local":
            return LocalTraining(load)
        return LaunchedTraining(engine.launch, facts, lora, store, engine.shards, device, served)

    # Of more than two shards, the order in which processes add them differs from that of one process.
    kind = {"launched": True} if engine.launch != "local" and engine.shards > 2 else {}
    if engine.replies == "local":
        local = load()
        if engine.launch == "local":
            return local
        told = {**local.describe(), **kind}
        return ComposedPolicy(local.facts, local, training(local.facts), fingerprint=local.fingerprint, described=told)
    place = device.device or best_device()
    facts = ModelFacts.read(model, lora=lora, thinking=thinking, on_cpu=place == "cpu", notify=notify)
    shards = {"shards": engine.shards} if engine.shards > 1 else {}
    described = {"device": place, **facts.describe(lora), **shards, **kind}
    if not served:
        actors = RayReplies(engine, facts, store, device, notify).connect()
        fingerprint = f"{facts.weights}-{actors.told['dtype']}@ray"
        return ComposedPolicy(
            facts, actors, training(facts), fingerprint=fingerprint, described={**described, **actors.told}
        )
    replies = ServedReplies(engine, facts, lora, store, notify=notify).connect()
    return ComposedPolicy(
        facts,
        replies,
        training(facts),
        fingerprint=f"{facts.weights}@vllm-{replies.told.version if replies.told else ''}",
        described={**described, "probe_nats": replies.probe_nats},
        context_tokens=replies.facts.context_tokens,
    )
