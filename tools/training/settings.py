"""Settings of LoRA training."""

from typing import Any, Literal

from pydantic import Field, field_validator

from nslora.tools.schema import Settings

MEASURED_RATE, MEASURED_WIDTH, WIDTH_EXPONENT = 4e-3, 576, 0.78


class LoraSettings(Settings):
    """Settings of a LoRA training job.

    The defaults are the same on a CPU and on a GPU, except `top_blocks`. They were measured on 24-30 invented facts
    with SmolLM2-135M-Instruct on a CPU, where the top third of the blocks learns as well as all of them at half the
    cost.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None  # module names; None: every linear layer of a block
    top_blocks: int | None = Field(None, ge=1)  # None: the top third on a CPU, all of them on a GPU
    use_rslora: bool = False
    use_dora: bool = False
    learning_rate: float | None = Field(None, gt=0, le=10)  # None: `rate_for` the model's width
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_share: float = Field(0.05, ge=0, le=1)
    epochs: int = Field(8, ge=1)
    max_steps: int | None = Field(None, ge=1)  # per training job; None: no limit beside the epochs
    batch_size: int = Field(8, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_loss_nats: float = Field(20.0, gt=0)  # above ln(vocabulary) for any vocabulary: worse than guessing
    early_stop_patience: int | None = Field(2, ge=1)  # epochs without a drop that end a job; None: no early stop
    early_stop_drop: float = Field(0.02, ge=0, lt=1)  # relative fall of an epoch's loss that counts as a drop
    # An epoch below this loss ends a job (unless patience is None): the rows are known by heart. On `handbook` a first
    # job ends at 0.007; a second one over the same rows began at 0.004, fell by nine tenths and gained no row.
    early_stop_loss_nats: float = Field(0.01, ge=0)
    replay_share: float = Field(0.25, ge=0, le=1)  # of the content rows: rows already right, against forgetting
    fast: bool = True  # frozen trunk and compact head, if a probe finds them exact
    share_prefix: bool = True  # if `fast`: the shared prefix once a batch; exact up to rounding

    @field_validator("targets", mode="before")
    @classmethod
    def _as_peft_names_them(cls, value: Any) -> Any:
        """`all-linear` is the default under PEFT's name; one name needs no list."""
        named = [value] if isinstance(value, str) else value
        return None if named == ["all-linear"] else named

    def rate_for(self, width: int) -> float:
        """Return `learning_rate`, or the default for a model of this hidden size.

        4e-3 was measured with the embedded model (hidden size 576). Wider models get less, in proportion to
        width^-0.78: Schulman et al. (LoRA Without Regret, 2025, and their cookbook) fitted this to Llama models; it was
        not measured here. Narrower models get 4e-3 too.
        """
        return self.learning_rate or MEASURED_RATE * min(1.0, (MEASURED_WIDTH / width) ** WIDTH_EXPONENT)
