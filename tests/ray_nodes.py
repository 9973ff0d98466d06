"""Ray for tests: its environment, which `make test-engines` makes, and a cluster of two nodes on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# For a machine whose cores are all busy: Ray takes a node that does not answer for 15 s for dead.
PATIENT = {
    "RAY_health_check_initial_delay_ms": "300000",
    "RAY_health_check_timeout_ms": "300000",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # it would look at the whole machine
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def run_with_ray(script: Path, *words: object, **changed: str) -> None:
    """Run a script in Ray's environment. Skips the test if there is none."""
    python = Path(os.environ.get("NSLORA_RAY", Path(sys.prefix) / "ray")) / "bin" / "python"
    if not python.exists():
        pytest.skip("Ray is not installed: make test-engines installs it")
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)]
    environment = {**os.environ, **PATIENT, "NSLORA_PAGE": "0", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [python, script, *map(str, words)],
        env={**environment, **changed},
        cwd=words[0],  # type: ignore[call-overload]
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=2400,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with one core each, found by `ray`; the second one is removed by `cluster.remove_node`."""
    import ray
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        cluster.add_node(**size)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
