"""The Ray cluster that runs, replies or training go to: `ray` (this machine's, or RAY_ADDRESS) or `ray://HOST:10001`."""

import importlib.util
import logging
import os
import socket
from typing import Any

from nslora.tools.errors import SettingsError, StoppedError, first_line

CONNECT_S = 10.0


def on_ray(place: object) -> bool:
    """Return whether a setting names a Ray cluster."""
    return isinstance(place, str) and (place == "ray" or place.startswith("ray://"))


def refuse_missing_ray(setting: str) -> None:
    """Raise SettingsError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise SettingsError(f"{setting} needs the package ray: pip install 'nslora[ray]'.")


def connected(place: str, *, says: bool = False) -> Any:
    """Return Ray, connected with a cluster; without one, `ray` starts one on this machine.

    Args:
        place: `ray` or an address.
        says: Whether this process prints what the workers do.

    Raises:
        SettingsError: If Ray is not installed.
        StoppedError: If the cluster cannot be reached.
    """
    refuse_missing_ray(place)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        host, _, port = (os.environ.get("RAY_ADDRESS", "") if place == "ray" else "").rpartition(":")
        try:
            if host and "/" not in host:  # Ray itself would try for a quarter of an hour
                socket.create_connection((host, int(port)), CONNECT_S).close()
            ray.init(None if place == "ray" else place, log_to_driver=says, logging_level=logging.ERROR)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise StoppedError(
                f"The Ray cluster {os.environ.get('RAY_ADDRESS', place)} cannot be reached ({first_line(error)}): "
                "start it (ray start --head), or name another one."
            ) from error
    return ray
