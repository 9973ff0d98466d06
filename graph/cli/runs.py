"""Commands on runs that exist; each has the name of the method of `Run` that it calls."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nslora.graph.cli.common import AsJson, Silent, follow, out, parsed
from nslora.graph.cli.reporters import Reporter, facts_of, reporter_of
from nslora.tools.errors import RunError, SettingsError

Folder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Database = Annotated[str | None, typer.Option(help="URL of the run's database, if it needs a password.")]
NewFolder = Annotated[Path | None, typer.Option(help="Folder of the new run. Default: beside the original.")]


def resume(
    folder: Folder,
    accept: Annotated[bool, typer.Option("--accept", help="Accept the update that waits.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Reject it.")] = False,
    prompt: Annotated[Path | None, typer.Option(help="Use the prompt in this file instead.")] = None,
    max_rounds: Annotated[int | None, typer.Option(help="Allow so many rounds; a run that has ended goes on.")] = None,
    replies: Annotated[str | None, typer.Option(help="New addresses of the run's servers.")] = None,
    launch: Annotated[str | None, typer.Option(help="New command that starts training.")] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Bring back rounds that pruned checkpoints held, from decisions.jsonl.")
    ] = False,
    checkpoints: Database = None,
    quiet: Silent = False,
    json_: AsJson = False,
) -> None:
    """Go on with a run from its last checkpoint, and answer the question that waits, if one does."""
    from nslora.tools.workspace.record import QUESTION_FILE

    say = reporter_of(quiet, json_)
    run, answer = opened(folder, checkpoints, notify=say.note), _answer_of(accept, reject, prompt)
    elsewhere = (folder / QUESTION_FILE).exists()  # asked under another checkpointer: then the stream says so
    if answer is not None and run.question() is None and not elsewhere:
        raise RunError(f"{folder} waits for no answer: leave out --accept, --reject or --prompt.")
    if engine := {key: value for key, value in (("replies", replies), ("launch", launch)) if value is not None}:
        run.connect(**engine)
    if restore:
        run.restore()
    if max_rounds is not None:
        run.allow(max_rounds)
    _follow(run, say, answer)


def question(folder: Folder, checkpoints: Database = None) -> None:
    """Show what a run asks a person, and how to answer."""
    from nslora.graph.cli.tables import show_question

    waiting = opened(folder, checkpoints, needs_editor=False).question()
    if waiting is None:
        out.print(f"{folder} asks nothing.", highlight=False)
    else:
        show_question(out, folder, waiting)


def report(folder: Folder, json_: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False) -> None:
    """Show the result of a finished run: the prompt's diff, base and result on the test split, the cost."""
    from nslora.graph.cli.progress import show_result
    from nslora.graph.runs.execution import report_in

    found = report_in(folder)
    if json_:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show_result(out, folder, found)


def state(folder: Folder, checkpoints: Database = None) -> None:
    """Print the newest state of a run as JSON."""
    print(json.dumps(opened(folder, checkpoints, needs_editor=False).state(), indent=2, ensure_ascii=False))


def history(folder: Folder, checkpoints: Database = None) -> None:
    """List the checkpoints of a run, the newest first."""
    from nslora.graph.cli.tables import show_history

    show_history(out, opened(folder, checkpoints, needs_editor=False).history())


def runs(folder: Annotated[Path, typer.Argument(help="The folder of the runs.")] = Path("runs")) -> None:
    """List the runs in a folder."""
    from nslora.graph.cli.tables import show_runs
    from nslora.graph.runs.view import runs as find

    found = find(folder)
    if found:
        show_runs(out, found)
    else:
        out.print(f"No runs in {folder}.")


def show(
    folder: Folder,
    number: Annotated[int | None, typer.Option("--round", help="Show one round in full.")] = None,
    editor: Annotated[
        bool, typer.Option("--editor", help="With --round: what its editor was sent and answered, whole.")
    ] = False,
) -> None:
    """Show a run's rounds, or one round with its failures, training rows, critiques and diff."""
    from nslora.graph.cli.progress import show_labels
    from nslora.graph.cli.tables import show_editor_calls, show_round, show_view
    from nslora.graph.runs.execution import report_in
    from nslora.graph.runs.view import look

    view = look(folder)
    if editor and number is None:
        raise SettingsError("--editor shows the calls of one round: give it, as in --round 1 --editor.")
    if editor and number is not None:
        show_editor_calls(out, view.round(number))
    elif number is None:
        show_view(out, view)
        if view.status == "finished":
            show_labels(out, report_in(folder))
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
    quiet: Silent = False,
    json_: AsJson = False,
) -> None:
    """Go another way from a round of a run, in a new run. The original stays as it is."""
    say = reporter_of(quiet, json_)
    source = opened(folder, checkpoints, needs_editor=editor is None)
    new = source.fork(into, at=at, action=action, editor=editor, settings=parsed(set_ or []))
    new.workspace.notify = say.note
    _follow(new, say)


def replay(
    folder: Folder,
    from_: Annotated[int, typer.Option("--from", help="First round to run again; 0 for the first evaluation too.")] = 1,
    retrain: Annotated[bool, typer.Option(help="Train again instead of taking the recorded adapters.")] = False,
    into: NewFolder = None,
    checkpoints: Database = None,
) -> None:
    """Run again from the records, offline, and say whether everything came out the same."""
    from nslora.graph.cli.stop_signals import report_when_stopped
    from nslora.graph.runs.folder import beside
    from nslora.tools.files import from_here

    source, copy = opened(folder, checkpoints, needs_editor=False), into or beside(folder, "replay")
    with report_when_stopped(out.print, f"Stopped: {copy} holds half a replay, delete it. {folder} is unchanged."):
        found = source.replay(copy, begin_at=from_, retrain=retrain)
    rounds = f"{found.rounds} round{'' if found.rounds == 1 else 's'}" if found.rounds else "The end"
    took = f"{found.seconds:.1f} s, the original {found.original_seconds:.1f} s"
    loaded = ", with the model loaded" if found.loaded_model else ""
    out.print(f"{rounds} again in {took}{loaded}: {from_here(found.run.folder)}", highlight=False, soft_wrap=True)
    for difference in found.differences:
        out.print(difference, highlight=False)
    if not found.same:
        raise RunError(f"The replay of {folder} came out differently in {len(found.differences)} places.")
    out.print("Decisions, rewards and hashes came out the same.")


def compare(folders: Annotated[list[Path], typer.Argument(help="Finished runs of one task.")]) -> None:
    """Put finished runs side by side, with intervals paired by test question."""
    from nslora.graph.cli.tables import show_comparison
    from nslora.graph.runs.compare import compare as put_together

    show_comparison(out, put_together(folders))


def html(
    folders: Annotated[
        list[Path], typer.Argument(help="Runs; of several, the first is what the others are compared to.")
    ],
    to: Annotated[Path, typer.Option(help="The page of several runs.")] = Path("comparison.html"),
) -> None:
    """Write the page of a run, or one of several: an HTML file that needs no network."""
    from nslora.graph.runs.page.writing import write_comparison, write_page
    from nslora.tools.files import from_here

    path = write_page(folders[0].absolute()) if len(folders) == 1 else write_comparison({"": folders}, to)
    out.print(str(from_here(path)), highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (resume, question, report, state, history, runs, show, fork, replay, compare, html):
        app.command()(command)


def _follow(run: Any, say: Reporter, answer: dict[str, str] | None = None) -> None:
    """Say which run it is, and work on it."""
    settings = run.workspace.settings
    say.begins(facts_of(run.workspace.task, settings.model, settings.editor, settings.strategy, settings.seed))
    follow(run, say, answer)


def opened(folder: Path, checkpoints: str | None, *, needs_editor: bool = True, notify: Any = None) -> Any:
    """The run in a folder. Settings of torch and tokenizers must stand before either is imported."""
    from nslora.graph.runs.run import Run
    from nslora.tools.policies.environment import prepare_environment

    prepare_environment()
    run = Run.open(folder, checkpoints=checkpoints, needs_editor=needs_editor)
    if notify is not None:
        run.workspace.notify = notify
    return run


def _answer_of(accept: bool, reject: bool, prompt: Path | None) -> dict[str, str] | None:
    """The options as an answer. Raises SettingsError if there is more than one, or the file cannot be read."""
    if sum((accept, reject, prompt is not None)) > 1:
        raise SettingsError("Give one answer: --accept, --reject or --prompt FILE.")
    if prompt is not None:
        try:
            return {"answer": "rewrite", "prompt": prompt.read_text(encoding="utf-8-sig")}
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--prompt {prompt}: the file cannot be read ({error}).") from error
    return {"answer": "accept"} if accept else {"answer": "reject"} if reject else None
