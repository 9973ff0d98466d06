"""Commands on runs that exist: list, show, resume, fork, replay, compare."""

from pathlib import Path
from typing import Annotated

import typer

from nslora.graph.cli.common import beside
from nslora.tools.errors import RunError, SettingsError

Folder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Database = Annotated[str | None, typer.Option(help="The run's database, where its URL needs a password.")]
NewFolder = Annotated[Path | None, typer.Option(help="New folder. Default: beside the original.")]


def resume(
    folder: Folder,
    accept: Annotated[bool, typer.Option("--accept", help="Say yes to the update that waits.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Say no to it.")] = False,
    prompt: Annotated[Path | None, typer.Option(help="Put the prompt in this file in its place.")] = None,
    checkpoints: Database = None,
) -> None:
    """Go on with a run from its last checkpoint; answer it where it waits for a person."""
    from nslora.graph.cli.common import follow
    from nslora.graph.runs.run import Run
    from nslora.tools.policies.local import prepare_environment
    from nslora.tools.workspace.record import QUESTION_FILE

    prepare_environment()
    run, answer = Run.open(folder, checkpoints=checkpoints), answer_of(accept, reject, prompt)
    elsewhere = (folder / QUESTION_FILE).exists()  # asked under another checkpointer: then the stream says so
    if answer is not None and run.question() is None and not elsewhere:
        raise RunError(f"{folder} waits for no answer: leave out --accept, --reject or --prompt.")
    follow(run, answer)


def answer_of(accept: bool, reject: bool, prompt: Path | None) -> dict[str, str] | None:
    """The options as an answer. Raises SettingsError where there is more than one, or the file cannot be read."""
    if sum((accept, reject, prompt is not None)) > 1:
        raise SettingsError("Give one answer: --accept, --reject or --prompt FILE.")
    if prompt is not None:
        try:
            return {"answer": "rewrite", "prompt": prompt.read_text(encoding="utf-8-sig")}
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--prompt {prompt}: the file cannot be read ({error}).") from error
    return {"answer": "accept"} if accept else {"answer": "reject"} if reject else None


def runs(folder: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs")) -> None:
    """List the runs in a folder."""
    from nslora.graph.cli.common import out
    from nslora.graph.cli.tables import show_runs
    from nslora.graph.runs.view import runs as find

    found = find(folder)
    if not found:
        out.print(f"No runs in {folder}.")
        return
    show_runs(out, found)


def show(
    folder: Folder,
    number: Annotated[int | None, typer.Option("--round", help="One round in full.")] = None,
) -> None:
    """Show a run's rounds, or one round with its failures, training rows, critiques and diff."""
    from nslora.graph.cli.common import out
    from nslora.graph.cli.tables import show_round, show_view
    from nslora.graph.runs.view import look

    view = look(folder)
    if number is None:
        show_view(out, view)
    else:
        show_round(out, view.round(number))


def fork(
    folder: Folder,
    at: Annotated[int, typer.Option(help="The round that is decided again; 0 for the first evaluation.")],
    action: Annotated[str | None, typer.Option(help="lora or textgrad: what that round does.")] = None,
    editor: Annotated[str | None, typer.Option(help="Another editor from there on.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as lora.rank=16.")] = None,
    into: NewFolder = None,
    checkpoints: Database = None,
) -> None:
    """Go another way from a round of a run, in a new run; the original stays as it is."""
    from nslora.graph.cli.common import follow, parsed
    from nslora.graph.runs.fork import fork as make
    from nslora.graph.runs.run import Run
    from nslora.tools.policies.local import prepare_environment

    prepare_environment()
    source = Run.open(folder, checkpoints=checkpoints, needs_editor=editor is None)
    follow(
        make(
            source,
            into or beside(folder, f"fork{at}"),
            at=at,
            action=action,  # type: ignore[arg-type]
            editor=editor,
            settings=parsed(set_ or []),
        )
    )


def replay(
    folder: Folder,
    from_: Annotated[int, typer.Option("--from", help="First round to run again; 0 for the first evaluation too.")] = 1,
    retrain: Annotated[bool, typer.Option(help="Train again instead of taking the recorded adapters.")] = False,
    into: NewFolder = None,
    checkpoints: Database = None,
) -> None:
    """Run again from the records, offline, and say whether everything came out the same."""
    from nslora.graph.cli.common import out
    from nslora.graph.cli.stop_signals import report_when_stopped
    from nslora.graph.runs.replay import replay as run_again
    from nslora.graph.runs.run import Run
    from nslora.tools.files import from_here
    from nslora.tools.policies.local import prepare_environment

    prepare_environment()
    source = Run.open(folder, checkpoints=checkpoints, needs_editor=False)
    copy = into or beside(folder, "replay")
    with report_when_stopped(
        out.print,
        f"Stopped: what is in {copy} is half a replay, so delete it. The run that was to be replayed is as it was.",
    ):
        found = run_again(source, copy, begin_at=from_, retrain=retrain)
    rounds = f"{found.rounds} round{'' if found.rounds == 1 else 's'}" if found.rounds else "The end"
    took = f"{found.seconds:.1f} s, the original {found.original_seconds:.1f} s"
    loaded = ", with the model loaded" if found.loaded_model else ""
    out.print(f"{rounds} again in {took}{loaded}: {from_here(found.run.folder)}", highlight=False, soft_wrap=True)
    if not found.same:
        for difference in found.differences:
            out.print(difference, highlight=False)
        raise RunError(f"The replay of {folder} came out otherwise in {len(found.differences)} places.")
    out.print("Decisions, rewards and hashes came out the same.")


def compare(folders: Annotated[list[Path], typer.Argument(help="Finished runs of one task.")]) -> None:
    """Put finished runs side by side, with intervals paired by test question."""
    from nslora.graph.cli.common import out
    from nslora.graph.cli.tables import show_comparison
    from nslora.graph.runs.compare import compare as put_together

    show_comparison(out, put_together(folders))


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (resume, runs, show, fork, replay, compare):
        app.command()(command)
