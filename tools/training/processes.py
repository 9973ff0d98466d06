"""The processes that train one job together, as torchrun and accelerate tell each of them."""

import os


def processes() -> int:
    """Return their number, 1 outside of a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_first() -> bool:
    """Return whether this process stores what all of them compute."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"
