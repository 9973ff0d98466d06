"""One cell of a sweep as a job: its run, from the beginning or from where it was left, and its line of the record."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nslora.tools.errors import StoppedError

if TYPE_CHECKING:
    from nslora.graph.runs.run import Run


def prepare() -> None:
    """Import what a run needs; creates no tensor."""
    from nslora.tools.policies.environment import libraries_imported, prepare_environment

    prepare_environment()
    with libraries_imported():
        import peft  # noqa: F401
        from trl import SFTConfig, SFTTrainer  # noqa: F401

        import nslora.graph.runs.run
        import nslora.tools.policies.local
        import nslora.tools.training.trainer  # noqa: F401
        from nslora.tools.editor.textual_gradients import load_textgrad

        load_textgrad()


def run_cell(folder: str, pool: str, source: str, options: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Run a cell to its end. SIGTERM ends it after the step under way.

    Args:
        folder: Of the run; one that was begun goes on.
        pool: Folder of training jobs and replies that cells share, "" for none. A job's name holds all that its adapter
            depends on. What a run reports as its compute is counted by formula, as if nothing were shared.
        source: Of the task, as `options`: see `load_task`.
        settings: The arguments of `Run.create`.
    """
    from nslora.graph.runs.copy_files import copy_records
    from nslora.graph.runs.run import Run
    from nslora.tools.tasks.task import load_task
    from nslora.tools.workspace.record import RUN_FILE

    path, shared = Path(folder), Path(pool)
    if (path / RUN_FILE).is_file():
        run = Run.open(path)
    else:
        run = Run.create(path, task=load_task(source, **options), notify=print, **settings)
        if pool and shared.is_dir():
            copy_records(shared, path, editor=False, trained=True)
    to_the_end(run)
    if question := run.question():
        raise StoppedError(f"round {question['round']} waits for a person: nslora resume {path}")
    if pool:
        shared.mkdir(parents=True, exist_ok=True)
        copy_records(path, shared, editor=False, trained=True)
    return record_of(run.report())


def to_the_end(run: "Run") -> None:
    """Go on with a run to its end, or to a question. Raises StoppedError if SIGTERM ends it after a step."""
    from langgraph.errors import GraphDrained
    from langgraph.runtime import RunControl

    control = RunControl()
    signal.signal(signal.SIGTERM, lambda *_: control.request_drain("SIGTERM"))
    try:
        for _ in run.stream(("updates",), control=control):
            pass
    except GraphDrained:
        raise StoppedError("stopped; every finished step is kept") from None


def record_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep's record keeps of a run's report."""
    test, validation = report["test"], report["validation"]
    return {
        **{which: {name: test[which][name] for name in ("reward", "all_checks", "interval")} for which in RESULTS},
        "gain": test["gain"],
        "validation": {which: validation[which]["reward"] for which in RESULTS},
        "changed": report["result"] != report["start"],
        "rounds": [
            {"action": each["action"], "kept": each["kept"], "reward": each["reward_after"], "error": each["error"]}
            for each in report["rounds"]
        ],
        "stop": report["stop"],
        "cost": report["cost"],
        "run_s": report["wall_s"],
    }


RESULTS = ("base", "result")
