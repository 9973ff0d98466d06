"""A finished run as a pair that can be exported, answer questions and be served: read from its folder alone."""

from pathlib import Path
from typing import Any

from nslora.graph.runs.execution import report_in
from nslora.tools.errors import DamagedError
from nslora.tools.export.pair import Pair
from nslora.tools.files import read_json, read_text, sha256_of_file
from nslora.tools.prompt import parse
from nslora.tools.training.adapters import WEIGHTS
from nslora.tools.workspace.record import POLICY_FILE, read_run_file, recorded_settings


def pair_of(folder: str | Path, *, base: str | None = None) -> Pair:
    """The pair that a finished run chose.

    Args:
        folder: The run's folder.
        base: The base, if it lies elsewhere now; None: as the run's settings name it.

    Raises:
        RunError: If the folder is no run, or the run has no result yet.
        DamagedError: If the result's adapter is not the one that the report names.
    """
    path = Path(folder)
    settings, report = recorded_settings(path, read_run_file(path)), report_in(path)
    adapter = path / "result" / "adapter" if report["result"]["adapter"] else None
    sha256 = sha256_of_file(adapter / WEIGHTS) if adapter and (adapter / WEIGHTS).is_file() else None
    if sha256 != report.get("adapter_sha256"):
        raise DamagedError(
            f"{path / 'result' / 'adapter'} is not the adapter that the report names: restore it from a copy."
        )
    prompt = parse(read_text(path / "result" / "prompt.md"))
    policy = read_json(path / POLICY_FILE) if (path / POLICY_FILE).exists() else {}
    return Pair(
        name=path.resolve().name,
        model=base or settings.model,
        fingerprint=policy.get("fingerprint", ""),
        adapter=adapter,
        prompt=prompt,
        thinking=settings.thinking,
        facts=_facts(path, report, prompt.hash),
    )


def _facts(path: Path, report: dict[str, Any], prompt: str) -> dict[str, Any]:
    """What an export says of itself."""
    test = report["test"]
    return {
        "run": path.resolve().name,
        "task": report["task"]["name"],
        "task_hash": report["task"]["hash"],
        "prompt": prompt,
        "adapter": report["result"]["adapter"],
        "adapter_sha256": report.get("adapter_sha256"),
        "test": {which: test[which]["all_checks"] for which in ("base", "result")} | {"questions": test["questions"]},
        "versions": report["versions"],
    }
