"""Where and how a policy computes."""

from typing import Literal

from pydantic import Field

from nslora.tools.schema import Settings


class DeviceSettings(Settings):
    """Where and how the policy computes; None chooses by the machine."""

    device: str | None = None  # None: CUDA, else MPS, else the CPU
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: bfloat16 if a GPU supports it, else float32
    threads: int | None = Field(None, ge=1, le=1024)  # None: OMP_NUM_THREADS, else the cores that the process may use
    batch_size: int | None = Field(None, ge=1)  # most rows of a batch; None: 32 on a CPU, 128 on CUDA, 64 on MPS


class EngineSettings(Settings):
    """What trains, if it is not this process."""

    launch: str = "local"  # command that starts a training program, such as "accelerate launch --config_file FILE"
    shards: int = Field(1, ge=1)  # parts of each training batch; with `launch`, the processes that it starts
