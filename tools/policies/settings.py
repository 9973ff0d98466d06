"""Where and how a policy computes."""

import re
from typing import Literal

from pydantic import Field, field_validator

from nslora.tools.policies.ray_cluster import on_ray
from nslora.tools.schema import Settings


class DeviceSettings(Settings):
    """Where and how the policy computes; None chooses by the machine."""

    device: str | None = None  # None: CUDA, else MPS, else the CPU
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: bfloat16 if a GPU supports it, else float32
    threads: int | None = Field(None, ge=1, le=1024)  # None: OMP_NUM_THREADS, else the cores that the process may use
    batch_size: int | None = Field(None, ge=1)  # most rows of a batch; None: 32 on a CPU, 128 on CUDA, 64 on MPS


class EngineSettings(Settings):
    """What replies and what trains, if it is not this process (tools/policies/README.md)."""

    # Addresses of vLLM servers of the model, or a Ray cluster: "ray", "ray://HOST:10001".
    replies: str | tuple[str, ...] = "local"
    # Command that starts a training program, such as "accelerate launch --config_file FILE", or a Ray cluster.
    launch: str = "local"
    shards: int = Field(1, ge=1)  # parts of each training batch; with `launch`, the processes that it starts
    timeout_s: float = Field(600.0, gt=0)  # of one request to a server

    @field_validator("replies", mode="before")
    @classmethod
    def _separated(cls, replies: object) -> object:
        return replies if not isinstance(replies, str) or replies == "local" or on_ray(replies) else replies.split(",")

    @field_validator("replies")
    @classmethod
    def _addresses(cls, replies: object) -> object:
        addresses = replies if isinstance(replies, tuple) else (str(replies),)
        wanted = r"https?://[^@?#\s]+" if isinstance(replies, tuple) else r"local|ray|ray://[^@?#\s]+"
        if not addresses or not all(re.fullmatch(wanted, url) for url in addresses):
            raise ValueError(
                "must be local, ray, ray://host:10001, or addresses such as http://host:8000, without user, password "
                "or query, because they are written to disk: give a key in the environment (VLLM_API_KEY)"
            )
        return tuple(url.rstrip("/") for url in addresses) if isinstance(replies, tuple) else replies
