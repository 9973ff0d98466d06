"""The process in which a local policy runs: environment variables, imports, warnings, threads and devices."""

import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Held while a model is loaded or trained: torch's random generator, accelerate's state, and the initialisers that
# transformers removes while it loads a model belong to the process, and runs may share it as threads.
PROCESS_WIDE = threading.RLock()


def prepare_environment() -> None:
    """Set environment variables that must stand before torch is imported, unless the user has set them.

    OpenMP threads spin while they wait, and on a shared machine two spinning threads are slower than one. cuBLAS is
    deterministic only with workspaces of a fixed size, and reads this before its first product.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextmanager
def libraries_imported() -> Iterator[None]:
    """Switch the garbage collector off during imports, which create no garbage.

    This saves a tenth of the time: 12.9 to 11.8 s of CPU for LangGraph, torch and transformers on a busy machine.

    If torch is imported inside, its objects are also excluded from later collections: accelerate asks for two full ones
    per training job, and each would walk through half a million objects of the libraries (0.3 s). This happens only
    once, because a model in memory at that time would stay there for good.
    """
    first, enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
        if first:
            gc.freeze()
    finally:
        if enabled:
            gc.enable()


def silence_known_warnings() -> None:
    """Hide the warnings that no user can act on."""
    # TRL 1.16 sets transformers' old name of the argument, and PEFT 0.21 asks for the old name of the property.
    warnings.filterwarnings("ignore", message=r".*is_activation_checkpointing.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*`activation_checkpointing` instead.*", category=FutureWarning)
    # A training job's adapter is deleted after it is stored; each use sets the active adapter.
    warnings.filterwarnings("ignore", message=r"Adapter job was active which is now deleted.*")
    # bitsandbytes logs each 8-bit product of a float32 model.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def default_threads() -> int:
    """Return `OMP_NUM_THREADS`, or the number of cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def best_device() -> str:
    """Return "cuda", else "mps", else "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_dtype(device: str) -> str:
    """Return "bfloat16" for a GPU that supports it, else "float32".

    A CPU gets float32 even if it has bf16 instructions: in bf16 rounding depends on the shape of a batch, so a reply
    would depend on the other rows of its batch.
    """
    import torch

    has_units = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_units else "float32"
