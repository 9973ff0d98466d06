"""Settings of a run: frozen, checked where the user can still mend them, the defaults stated once."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nslora.tools.expected_gain import StrategySettings
from nslora.tools.signal import SignalSettings
from nslora.tools.statistics import KeepSettings


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraSettings(Settings):
    """What a burst of LoRA training does.

    Defaults were measured on 24-30 invented facts with SmolLM2-135M-Instruct on a CPU: a learning rate of 2e-3 crosses
    80 % in 40-75 s, and the top third of the blocks learns as well as all of them at half the cost.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None          # module names; None: every linear layer of a block
    top_blocks: int | None = Field(None, ge=1)      # None: the top third on a CPU, all of them on a GPU
    use_rslora: bool = False
    use_dora: bool = False
    learning_rate: float = Field(2e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_share: float = Field(0.05, ge=0, le=1)
    epochs: int = Field(8, ge=1)
    batch_size: int = Field(8, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_loss_nats: float = Field(20.0, gt=0)        # above ln(vocabulary) for any vocabulary: worse than guessing
    replay_share: float = Field(0.25, ge=0, le=1)   # of the content rows: rows already right, so that they stay so
    fast: bool = True                               # frozen trunk and compact head, where they are exact


class DeviceSettings(Settings):
    """Where and how the policy computes; None lets the machine decide."""

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)      # of generation


class RunSettings(Settings):
    """Everything that decides how a run goes, beside the task."""

    model: str = "SmolLM2-135M-Instruct"
    editor: str = "rules"                           # for a chat model object: its name, for the record
    editor_base_url: str | None = None
    strategy: str = "neurosymbolic"
    seed: int = Field(0, ge=0)
    max_rounds: int = Field(6, ge=0)
    target: float = Field(1.0, gt=0, le=1)          # validation reward at which nothing is left to gain
    train_sample: int = Field(24, ge=1)             # train rows an evaluation looks at, for failures to learn from
    lora: LoraSettings = LoraSettings()
    device: DeviceSettings = DeviceSettings()
    keep: KeepSettings = KeepSettings()
    signal: SignalSettings = SignalSettings()
    routing: StrategySettings = StrategySettings()
    reuse_replies: bool = True                      # look replies up in the user's cache before generating them
