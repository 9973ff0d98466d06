"""The command line: `nslora run handbook`."""

import errno
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from nslora.graph.cli import answer as cli_answer
from nslora.graph.cli import export as cli_export
from nslora.graph.cli import merge_prompt as cli_merge_prompt
from nslora.graph.cli import runs as cli_runs
from nslora.graph.cli import serve as cli_serve
from nslora.graph.cli.check import checked
from nslora.graph.cli.classifier import classify_log, diagnosed
from nslora.graph.cli.common import BAD_INPUT, RESUMABLE, AsJson, Silent, err, follow, group, out, parsed
from nslora.graph.cli.reporters import facts_of, reporter_of
from nslora.graph.cli.sweep import sweep_file
from nslora.tools.errors import NsloraError, StoppedError

USAGE_ERROR = 2  # what click exits with after wrong arguments
_NAMED_ALIKE = (
    "model adapter thinking editor strategy seed max-rounds max-seconds max-train-tokens max-tflop approve checkpoints "
    "overwrite folder track"
)
OPTIONS = {name.replace("-", "_"): f"--{name}" for name in _NAMED_ALIKE.split()} | {
    "editor_base_url": "--base-url",
    "task": "TASK",
    "notify": "in Python only",
    "cls": "in Python only",
    "check_editor": "--no-check-editor",
}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt a language model, deciding at every round whether to tune weights or rewrite the prompt.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import nslora

        print(f"nslora {nslora.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Adapt a language model, deciding at every round whether to tune weights or rewrite the prompt."""


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="An embedded task (handbook), a task.yaml, or a folder with one.")],
    model: Annotated[str, typer.Option(help="Embedded name, folder, .gguf file, or hub id.")] = "SmolLM2-135M-Instruct",
    adapter: Annotated[str | None, typer.Option(help="PEFT folder to start from, in place of the bare model.")] = None,
    thinking: Annotated[str, typer.Option(help="off, on, or template: as the model's chat template has it.")] = "off",
    editor: Annotated[str, typer.Option(help="rules, policy, or provider:model such as openai:gpt-4o.")] = "rules",
    base_url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server for the editor.")] = None,
    strategy: Annotated[
        str, typer.Option(help="neurosymbolic, lora, textgrad, random, an order, or package.module:function.")
    ] = "neurosymbolic",
    style: Annotated[str | None, typer.Option(help="House style, for tasks that have several.")] = None,
    combine: Annotated[str | None, typer.Option(help="mean or all: graded or all-or-nothing reward.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same decisions, same adapter hash.")] = 0,
    max_rounds: Annotated[int, typer.Option(help="Most updates.")] = 6,
    max_seconds: Annotated[float | None, typer.Option(help="Longest time at work, over all processes.")] = None,
    max_train_tokens: Annotated[int | None, typer.Option(help="Most tokens through training steps.")] = None,
    max_tflop: Annotated[float | None, typer.Option(help="Most model compute of all rounds, by formula.")] = None,
    max_editor_calls: Annotated[int | None, typer.Option(help="Most requests to the editor.")] = None,
    max_editor_tokens: Annotated[int | None, typer.Option(help="Most tokens of the editor, both ways.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Most that the editor may cost, at editing.prices.")] = None,
    approve: Annotated[str, typer.Option(help="nothing, edits or updates: what waits for your yes.")] = "nothing",
    check_editor: Annotated[
        bool, typer.Option(help="Ask an editor behind an address for one token before anything is spent.")
    ] = True,
    replies: Annotated[
        str | None,
        typer.Option(help="Who replies: addresses of vLLM servers with commas between, ray, ray://HOST:10001."),
    ] = None,
    launch: Annotated[
        str | None, typer.Option(help="What starts training on several GPUs: torchrun, accelerate launch, or ray.")
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="mlflow, wandb, trackio, tensorboard or package.module:Class; several too.")
    ] = None,
    checkpoints: Annotated[str | None, typer.Option(help="postgresql://... instead of a file in FOLDER.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and an estimate; spend nothing.")] = False,
    folder: Annotated[Path | None, typer.Option(help="New folder of the run. Default: runs/TASK-TIME.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is already in FOLDER.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as lora.rank=16.")] = None,
    quiet: Silent = False,
    json_: AsJson = False,
) -> None:
    """Adapt a model to a task: evaluate, decide, update, until nothing is left to gain."""
    from nslora.tools.policies.environment import prepare_environment
    from nslora.tools.tasks.task import load_task

    prepare_environment()
    say = reporter_of(quiet, json_)
    loaded = load_task(task, **{key: value for key, value in (("style", style), ("combine", combine)) if value})
    settings = parsed(set_ or [], elsewhere=OPTIONS)
    caps = {"max_calls": max_editor_calls, "max_tokens": max_editor_tokens, "max_cost": max_cost}
    if any(value is not None for value in caps.values()):
        settings["editing"] = {**group(settings, "editing"), **{k: v for k, v in caps.items() if v is not None}}
    engines = {key: value for key, value in (("replies", replies), ("launch", launch)) if value is not None}
    if engines:
        settings["engine"] = {**group(settings, "engine"), **engines}
    settings |= {
        "adapter": adapter,
        "thinking": thinking,
        "strategy": strategy,
        "seed": seed,
        "max_rounds": max_rounds,
        "max_seconds": max_seconds,
        "max_train_tokens": max_train_tokens,
        "max_tflop": max_tflop,
        "approve": approve,
        "track": ",".join(track or []),
        "editor_base_url": base_url,
    }
    if not dry_run:
        say.begins(facts_of(loaded, model, editor, strategy, seed))
    # From here on imports take seconds.
    from nslora.graph.runs.adapt import default_folder
    from nslora.graph.runs.run import Run

    path = folder or default_folder(loaded.name)
    if dry_run:
        from nslora.graph.cli.tables import show_plan

        show_plan(out, _planned(path, loaded, checkpoints, overwrite, model=model, editor=editor, **settings))
        return
    follow(
        Run.create(
            path,
            task=loaded,
            model=model,
            editor=editor,
            notify=say.note,
            checkpoints=checkpoints,
            overwrite=overwrite,
            check_editor=check_editor,
            **settings,
        ),
        say,
    )


def _planned(path: Path, task: Any, checkpoints: str | None, overwrite: bool, **settings: Any) -> Any:
    """The plan of a run, after every check that `Run.create` would make without loading the model."""
    from nslora.graph.runs.checkpoints import check_place
    from nslora.graph.runs.folder import could_begin, fitted_settings, read_settings, refuse_unusable
    from nslora.tools.inference.weights import EMBEDDED_NAME
    from nslora.tools.workspace.budget import plan_of
    from nslora.tools.workspace.workspace import Workspace

    check_place(checkpoints)
    values = read_settings(**settings)
    if not overwrite:
        refuse_unusable(path)
    could_begin(Workspace(path, values, task), ask_reward=not task.reward.costly)
    looked_at = (values.adapter, values.lora.targets, values.lora.top_blocks, values.thinking == "on")
    if values.model != EMBEDDED_NAME or any(looked_at):  # otherwise everything fits
        values = fitted_settings(values, out.print)
    return plan_of(task, values)


@app.command()
def graph(mermaid: Annotated[bool, typer.Option(help="As a Mermaid diagram.")] = True) -> None:
    """Print the graph, drawn from the code."""
    from nslora.graph.build import build_graph

    drawing = build_graph().get_graph()
    # Plain print: Rich would wrap the lines of the diagram.
    print(drawing.draw_mermaid() if mermaid else json.dumps(drawing.to_json(), indent=2))


app.command("check")(checked)
app.command("classify")(classify_log)
app.command("diagnose")(diagnosed)
app.command("sweep")(sweep_file)


cli_runs.register(app)
cli_export.register(app)
cli_answer.register(app)
cli_serve.register(app)
cli_merge_prompt.register(app)


def main() -> None:
    """Entry point. Exit status: 0 finished, 1 bad input, 3 stopped and resumable, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a user's text may hold what no terminal can show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as stop:
        raise SystemExit(BAD_INPUT if stop.code == USAGE_ERROR else stop.code) from None
    except StoppedError as error:
        _say("stopped", str(error))
        raise SystemExit(RESUMABLE) from None
    except NsloraError as error:
        _say(type(error).__name__.removesuffix("Error").lower(), str(error))
        raise SystemExit(BAD_INPUT) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _say("name", f"{error.filename} is too long for a file or a folder: give a shorter one.")
        elif error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
            _say("output", f"it cannot be written: {error.strerror}")
        else:
            raise
        raise SystemExit(BAD_INPUT) from None


def _say(kind: str, message: str) -> None:
    err.print(Text.assemble(("error", "bold red"), f" {kind}: {message}"))
