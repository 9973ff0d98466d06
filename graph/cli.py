"""The command line: `nslora run handbook`."""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from nslora.tools.errors import NsloraError, RunError, SettingsError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Adapt a language model, deciding at every round whether to tune weights or rewrite the prompt.")
out = Console(soft_wrap=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


@app.callback()
def root() -> None:
    """Adapt a language model, deciding at every round whether to tune weights or rewrite the prompt."""


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="An embedded task (handbook), a task.yaml, or a folder with one.")],
    model: Annotated[str, typer.Option(help="Embedded name, folder, or hub id.")] = "SmolLM2-135M-Instruct",
    editor: Annotated[str, typer.Option(help="rules, policy, or provider:model such as openai:gpt-4o.")] = "rules",
    base_url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server for the editor.")] = None,
    strategy: Annotated[str, typer.Option(help="neurosymbolic, lora, textgrad, random, or an order.")] =
        "neurosymbolic",
    style: Annotated[str | None, typer.Option(help="House style, for tasks that have several.")] = None,
    combine: Annotated[str | None, typer.Option(help="mean or all: graded or all-or-nothing reward.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same decisions, same adapter hash.")] = 0,
    max_rounds: Annotated[int, typer.Option(help="Most updates.")] = 6,
    folder: Annotated[Path | None, typer.Option(help="New folder of the run. Default: runs/TASK-TIME.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is already in FOLDER.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as lora.rank=16.")] = None,
) -> None:
    """Adapt a model to a task: evaluate, decide, update, until nothing is left to gain."""
    from nslora.tools.local_policy import prepare_environment
    from nslora.tools.task import load_task

    prepare_environment()
    loaded = load_task(task, **{key: value for key, value in (("style", style), ("combine", combine)) if value})
    path = folder or Path("runs") / f"{loaded.name}-{datetime.now():%Y%m%d-%H%M%S}"
    settings = parsed(set_ or [])
    from nslora.graph.run import Run

    if overwrite and path.exists():
        remove_run(path)
    begun = Run.create(path, task=loaded, model=model, editor=editor, editor_base_url=base_url, strategy=strategy,
                       seed=seed, max_rounds=max_rounds, note=out.print, **settings)
    follow(begun)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="The folder of a run that did not finish.")]) -> None:
    """Go on with a run from its last checkpoint."""
    from nslora.graph.run import Run

    follow(Run.open(folder))


@app.command()
def graph(mermaid: Annotated[bool, typer.Option(help="As a Mermaid diagram.")] = True) -> None:
    """Print the graph, drawn from the code."""
    from nslora.graph.adapt import build_graph

    drawing = build_graph().get_graph()
    # Plain print: Rich would wrap the lines of the diagram.
    print(drawing.draw_mermaid() if mermaid else drawing.to_json())


def follow(begun: Any) -> None:
    """Show a run until it ends, or say how to go on with it."""
    from nslora.graph.console import show_result, show_run

    lab = begun.lab
    rows = lab.task
    out.print(f"task     {rows.name}: {len(rows.train)} train, {len(rows.validation)} validation, {len(rows.test)} "
              f"test rows; model {lab.settings.model}; editor {lab.settings.editor}; strategy {lab.settings.strategy}; "
              f"seed {lab.settings.seed}")
    try:
        show_run(out, begun.stream())
    except KeyboardInterrupt:
        err.print(f"Stopped. Everything up to the last finished step is kept: nslora resume {begun.folder}")
        raise typer.Exit(130) from None
    show_result(out, begun.folder, begun.report())


def parsed(assignments: list[str]) -> dict[str, Any]:
    """`lora.rank=16` to {"lora": {"rank": 16}}; values are read as YAML."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, found, value = assignment.partition("=")
        if not found or not name.strip():
            raise SettingsError(f"--set {assignment}: write it as name=value, such as lora.rank=16.")
        *groups, last = name.strip().split(".")
        place = settings
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = yaml.safe_load(value)
    return settings


def remove_run(folder: Path) -> None:
    """Delete an earlier run; anything else in its place is refused."""
    from nslora.tools.lab import read_run_file

    try:
        read_run_file(folder)
    except RunError as error:
        raise RunError(f"{folder} exists and is not the folder of a run, so --overwrite leaves it alone: name another "
                       "folder.") from error
    shutil.rmtree(folder)


def main() -> None:
    """Entry point: one clear sentence and exit status 1 where the package refuses, 2 for wrong arguments."""
    try:
        app()
    except NsloraError as error:
        err.print(f"[bold red]error[/] {type(error).__name__.removesuffix('Error').lower()}: ", end="")
        err.print(str(error), markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
