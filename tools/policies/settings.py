"""Where and how a policy computes."""

from typing import Literal

from pydantic import Field

from nslora.tools.schema import Settings


class DeviceSettings(Settings):
    """Where and how the policy computes; None lets the machine decide."""

    device: str | None = None  # CUDA, else MPS, else the CPU
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # bfloat16 on a GPU that has it, else float32
    threads: int | None = Field(None, ge=1, le=1024)  # OMP_NUM_THREADS, else the cores that the process may use
    batch_size: int | None = Field(None, ge=1)  # of generation, at most: 32 on a CPU, 128 on CUDA, 64 on MPS
