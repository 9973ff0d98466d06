"""Settings of a run: frozen, checked where the user can still mend them, the defaults stated once."""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nslora.tools.evaluation.paired_tests import KeepSettings
from nslora.tools.router.expected_gain import StrategySettings
from nslora.tools.router.monitoring_signal import SignalSettings

SEEDS = 2**32      # as many as NumPy takes


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


MEASURED_RATE, MEASURED_WIDTH, WIDTH_EXPONENT = 4e-3, 576, 0.78


class LoraSettings(Settings):
    """What a burst of LoRA training does.

    Defaults are the same on a CPU and on a GPU, but for `top_blocks`. They were measured on 24-30 invented facts with
    SmolLM2-135M-Instruct on a CPU, where the top third of the blocks learns as well as all of them at half the cost.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None          # module names; None: every linear layer of a block
    top_blocks: int | None = Field(None, ge=1)      # None: the top third on a CPU, all of them on a GPU
    use_rslora: bool = False
    use_dora: bool = False
    learning_rate: float | None = Field(None, gt=0, le=10)      # None: `rate_for` the model's width
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_share: float = Field(0.05, ge=0, le=1)
    epochs: int = Field(8, ge=1)
    max_steps: int | None = Field(None, ge=1)       # ends a burst, whatever its epochs; None: no such end
    batch_size: int = Field(8, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_loss_nats: float = Field(20.0, gt=0)        # above ln(vocabulary) for any vocabulary: worse than guessing
    early_stop_patience: int | None = Field(2, ge=1)    # epochs without a drop that end a burst; None: never
    early_stop_drop: float = Field(0.02, ge=0, lt=1)    # relative fall of an epoch's loss that counts as a drop
    # Rows known by heart: on `handbook` a first burst ends at 0.007; a second one over the same rows began at 0.004,
    # fell by nine tenths and won no row. One such epoch ends a burst; with patience None it does not.
    early_stop_loss_nats: float = Field(0.01, ge=0)
    replay_share: float = Field(0.25, ge=0, le=1)   # of the content rows: rows already right, so that they stay so
    fast: bool = True                               # frozen trunk and compact head, where a probe finds them exact
    share_prefix: bool = True                       # with fast: common beginnings once a batch; exact up to rounding

    def rate_for(self, width: int) -> float:
        """The learning rate for a model of this hidden size; what is set goes as it is.

        4e-3 was measured, with the embedded model (576 wide). Wider models want less: as width^-0.78 over Llama models
        (Schulman et al., LoRA Without Regret, 2025, and their cookbook), which is taken for all, and was not measured
        here. Narrower ones get no more.
        """
        return self.learning_rate or MEASURED_RATE * min(1.0, (MEASURED_WIDTH / width) ** WIDTH_EXPONENT)


class DeviceSettings(Settings):
    """Where and how the policy computes; None lets the machine decide."""

    device: str | None = None                       # CUDA, else MPS, else the CPU
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # bfloat16 on a GPU that has it, else float32
    threads: int | None = Field(None, ge=1, le=1024)        # OMP_NUM_THREADS, else the cores that the process may use
    batch_size: int | None = Field(None, ge=1)      # of generation, at most: 32 on a CPU, 128 on CUDA, 64 on MPS


class Price(Settings):
    """Of a chat model, in any currency, per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class EditorSettings(Settings):
    """How the symbolic editor is asked, and the most that it may cost in a run.

    Each failure that is shown is one call and about 2000 tokens of the last one. timeout_s and transport_retries go to
    chat models that are named; a chat model object keeps its own.
    """

    edit: Literal["document", "system", "question", "demonstrations"] = "document"
    failures: int = Field(4, ge=1)                  # shown at once
    candidates: int = Field(1, ge=1)                # of an edit; several are screened before one is proposed
    screening_rows: int = Field(8, ge=2)            # train rows for that, half of them failing, half passing
    retries: int = Field(2, ge=0)                   # an unusable reply is sent back with the reason, so often
    patience: int = Field(3, ge=1)                  # failed edits in a row after which the editor is left alone
    max_calls: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=0)      # input and output together
    max_cost: float | None = Field(None, ge=0)      # in the currency of `prices`
    prices: dict[str, Price] = {}                   # by model name, as in "gpt-4o"
    reply_tokens: int = Field(4096, ge=1)           # longest reply that is asked for under a cap
    # Forms instead of tags: where the model's profile says that it can; "always" for a server such as vLLM, llama.cpp.
    structured: Literal["auto", "always", "never"] = "auto"
    protected: tuple[str, ...] = ()                 # texts that must stay in the prompt, word for word
    rules: tuple[str, ...] = ()                     # further sentences that the editor must follow
    timeout_s: float = Field(180.0, gt=0)           # of one request; a local model on a CPU may need minutes
    transport_retries: int = Field(2, ge=0)         # after a timeout, a rate limit or a server error
    policy_reply_tokens: int = Field(768, ge=16)    # longest reply of the editor "policy"


class RunSettings(Settings):
    """Everything that decides how a run goes, beside the task."""

    model: str = "SmolLM2-135M-Instruct"
    editor: str = "rules"                           # for a chat model object: its name, for the record
    editor_base_url: str | None = None
    editing: EditorSettings = EditorSettings()
    remade_per_row: int = Field(1, ge=0)            # verified replies to one train question; 0: no remade data
    strategy: str = "neurosymbolic"
    seed: int = Field(0, ge=0, lt=SEEDS)
    max_rounds: int = Field(6, ge=0)
    target: float = Field(1.0, gt=0, le=1)          # validation reward at which nothing is left to gain
    max_seconds: float | None = Field(None, gt=0)   # inside nodes, all processes of the run together
    max_train_tokens: int | None = Field(None, ge=0)    # through training steps; the editor's caps are in `editing`
    max_tflop: float | None = Field(None, gt=0)     # of model compute until the end of the last round, by formula
    approve: Literal["nothing", "edits", "updates"] = "nothing"     # which updates wait for a person's yes
    anchor: str | None = None                       # file of rows on which no update may make the model worse
    train_sample: int = Field(24, ge=1)             # train rows an evaluation looks at, for failures to learn from
    lora: LoraSettings = LoraSettings()
    device: DeviceSettings = DeviceSettings()
    keep: KeepSettings = KeepSettings()
    signal: SignalSettings = SignalSettings()
    routing: StrategySettings = StrategySettings()
    reuse_replies: bool = True                      # of other runs; this run's own are always kept

    @field_validator("editor_base_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        if url is not None and re.search(r"@|\?", url):
            raise ValueError("must hold no user, password or query, since it is written down; a key comes from the "
                             "environment (OPENAI_API_KEY)")
        return url

    @field_validator("model")
    @classmethod
    def _absolute_where_it_is_a_folder(cls, name: str) -> str:
        from nslora.tools.inference.weights import EMBEDDED_HUB_ID, EMBEDDED_NAME

        folder = Path(name).expanduser()
        # os.path bears a name that no file system takes, Path does not.
        is_folder = os.path.isdir(folder) and name not in (EMBEDDED_HUB_ID, EMBEDDED_NAME)
        return str(folder.absolute()) if is_folder else name

    @field_validator("anchor")
    @classmethod
    def _wherever_it_is_continued(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).absolute())
