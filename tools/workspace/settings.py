"""Settings of a run: frozen, and checked before the run begins. This is the only place of their defaults."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from nslora.tools.editor.settings import EditorSettings, JudgeSettings, Protocol
from nslora.tools.evaluation.acceptance import KeepSettings
from nslora.tools.named import name_of
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import Thinking
from nslora.tools.router.expected_gain import StrategySettings
from nslora.tools.router.monitoring_signal import SignalSettings
from nslora.tools.schema import Settings
from nslora.tools.training.settings import LoraSettings

SEEDS = 2**32  # as many as NumPy takes


class TrackingSettings(Settings):
    """What trackers get, and how long the end of a run waits for them."""

    project: str | None = None  # MLflow's experiment; None: as the tracker's environment has it, else "nslora"
    adapters: bool = True  # send those that were kept
    timeout_s: float = Field(30.0, gt=0)  # after it, a tracker that does not answer is named


class RunSettings(Settings):
    """All that decides how a run goes, except the task."""

    model: str = "SmolLM2-135M-Instruct"
    adapter: str | None = None  # PEFT folder that the run starts from: evaluated as the base, and trained on
    thinking: Thinking = "off"  # before a reply; "template": as the chat template's own default is
    editor: str = "rules"  # of a chat model object: its name, for the record
    editor_base_url: str | None = None
    editing: EditorSettings = EditorSettings()
    judging: JudgeSettings = JudgeSettings()  # for tasks with a `judge` check
    remade_per_row: int = Field(1, ge=0)  # verified replies to one train question; 0: no remade data
    remade_rows: int | None = Field(1000, ge=1)  # train questions that an edit has answered anew; of more, a sample
    strategy: str = "neurosymbolic"
    seed: int = Field(0, ge=0, lt=SEEDS)
    max_rounds: int = Field(6, ge=0)
    target: float = Field(1.0, gt=0, le=1)  # validation reward at which nothing is left to gain
    max_seconds: float | None = Field(None, gt=0)  # inside nodes, all processes of the run together
    max_train_tokens: int | None = Field(None, ge=0)  # through training steps; the editor's caps are in `editing`
    max_tflop: float | None = Field(None, gt=0)  # of model compute until the end of the last round, by formula
    approve: Literal["nothing", "edits", "updates"] = "nothing"  # updates that wait for a person's approval
    anchor: str | None = None  # file of the regression set: rows on which no update may lower the reward
    train_sample: int = Field(24, ge=1)  # train rows per evaluation, for failures to learn from
    lora: LoraSettings = LoraSettings()
    device: DeviceSettings = DeviceSettings()
    engine: EngineSettings = EngineSettings()
    keep: KeepSettings = KeepSettings()
    signal: SignalSettings = SignalSettings()
    routing: StrategySettings = StrategySettings()
    track: tuple[str, ...] = ()  # mlflow, wandb, trackio, tensorboard, or "package.module:Class" of your own
    tracking: TrackingSettings = TrackingSettings()
    reuse_replies: bool = True  # share replies with other runs; this run's own are cached in either case

    @property
    def protocol(self) -> Protocol:
        """How the editor is asked: the embedded rule editor knows TextGrad's own requests alone."""
        return "textgrad" if self.editor == "rules" else self.editing.protocol

    @field_validator("editor_base_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        if url is not None and re.search(r"@|\?", url):
            raise ValueError(
                "must hold no user, password or query, because it is written to disk: give the key in the "
                "environment (OPENAI_API_KEY)"
            )
        return url

    @field_validator("strategy", mode="before")
    @classmethod
    def _by_name(cls, strategy: object) -> object:
        return name_of("strategy", strategy) if callable(strategy) else strategy

    @field_validator("track", mode="before")
    @classmethod
    def _by_names(cls, track: Any) -> Any:
        """One name, or several with commas, need no list; a class is recorded by its name."""
        found = track.split(",") if isinstance(track, str) else [track] if callable(track) else track or ()
        names = [name_of("track", each) if callable(each) else each for each in found]
        stripped = [each.strip() if isinstance(each, str) else each for each in names]
        return tuple(dict.fromkeys(each for each in stripped if each != ""))

    @field_validator("model")
    @classmethod
    def _absolute_if_a_folder(cls, name: str) -> str:
        from nslora.tools.inference.weights import EMBEDDED_HUB_ID, EMBEDDED_NAME

        folder = Path(name).expanduser()
        # Path.is_dir raises on a name that no file system takes; os.path.isdir does not.
        is_folder = os.path.isdir(folder) and name not in (EMBEDDED_HUB_ID, EMBEDDED_NAME)
        return str(folder.absolute()) if is_folder else name

    @field_validator("anchor", "adapter")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).absolute())
