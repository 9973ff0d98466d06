"""`nslora sweep`: many runs from one file, and a table of them."""

from pathlib import Path
from typing import Annotated

import typer

from nslora.graph.cli.common import BAD_INPUT, err, out


def sweep_file(
    file: Annotated[Path, typer.Argument(help="YAML with lists: tasks, models, editors, strategies, seeds, ...")],
    jobs: Annotated[int, typer.Option(help="Runs at once.")] = 1,
    on: Annotated[str, typer.Option(help="local: processes here; ray or ray://HOST:10001: a Ray cluster.")] = "local",
    cpus: Annotated[float | None, typer.Option(help="Cores of each run, on Ray. Default: 1.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of each run, on Ray. Default: 1, if there are any.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the sweep. Default: sweeps/NAME.")] = None,
    share: Annotated[bool, typer.Option(help="Cells share training jobs and replies that are the same.")] = True,
) -> None:
    """Run every combination of tasks, models, editors, strategies, seeds and settings. Run it again to go on."""
    from dataclasses import replace

    from langgraph.runtime import RunControl

    from nslora.graph.cli.stop_signals import stopping
    from nslora.graph.runs.page.live import PAGE_FILE
    from nslora.graph.sweep.ray_jobs import RayExecutor
    from nslora.graph.sweep.sweep import executor_of, sweep
    from nslora.tools.errors import SettingsError
    from nslora.tools.files import from_here, quoted
    from nslora.tools.policies.environment import prepare_environment

    prepare_environment()
    control = RunControl()
    words = [f"nslora sweep {quoted(file)}", *([f"--folder {quoted(folder)}"] if folder else [])]
    given = (("--jobs", jobs, 1), ("--on", on, "local"), ("--cpus", cpus, None), ("--gpus", gpus, None))
    words += [f"{option} {value}" for option, value, usual in given if value != usual]
    go_on = f"Go on with: {' '.join(words)}"
    executor = executor_of(on, jobs)
    if isinstance(executor, RayExecutor):
        executor = replace(executor, cpus=1 if cpus is None else cpus, gpus=gpus)
    elif cpus is not None or gpus is not None:
        raise SettingsError("--cpus and --gpus go with --on ray.")

    def say(line: str) -> None:
        out.print(line, highlight=False, soft_wrap=True)

    with stopping(control, err.print, lambda: err.print(f"Stopped at once. {go_on}")) as stopper:
        found = sweep(file, folder=folder, jobs=jobs, on=executor, share=share, notify=say, control=control)
    say(found.table)
    for line in found.failed:
        err.print(f"failed: {line}")
    say(f"table    {from_here(found.folder)}/table.csv, table.json; runs in {from_here(found.folder)}/runs")
    if (found.folder / PAGE_FILE).is_file():
        say(f"page     {from_here(found.folder)}/{PAGE_FILE}")
    if found.left:
        err.print(f"{found.left} cells are left. {go_on}")
        raise typer.Exit(stopper.exit_status)
    if found.failed:
        err.print(f"{len(found.failed)} cells failed; they are tried again by: {go_on.removeprefix('Go on with: ')}")
        raise typer.Exit(BAD_INPUT)
