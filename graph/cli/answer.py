"""`nslora answer` and `nslora chat`: the result of a run, used in this process."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from nslora.graph.cli.common import err, out
from nslora.graph.cli.export import Base
from nslora.graph.cli.runs import Folder
from nslora.tools.errors import NsloraError


def answer(
    folder: Folder,
    questions: Annotated[Path, typer.Argument(help="A .csv, .jsonl or .parquet file with the columns of the task.")],
    out_: Annotated[Path, typer.Option("--out", help="New file, .csv or .jsonl: the rows with a column `reply`.")],
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    base: Base = None,
) -> None:
    """Answer a file of questions. Stopped or killed, the same command goes on where it was."""
    from nslora.graph.cli.stop_signals import report_when_stopped
    from nslora.graph.runs.answer import answer_file
    from nslora.tools.policies.environment import prepare_environment

    prepare_environment()
    with report_when_stopped(err.print, "Stopped; the replies so far are kept: give the same command again."):
        count = answer_file(folder, questions, out_, overwrite=overwrite, base=base, notify=_say)
    _say(f"wrote    {out_}: {count} replies")


def chat(
    folder: Folder,
    prompt: Annotated[bool, typer.Option(help="Show the prompt that is sent.")] = True,
    max_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 256,
    base: Base = None,
) -> None:
    """Ask the base and the result side by side. An empty line or Ctrl-D ends; /new forgets the dialogue."""
    from nslora.graph.runs.answer import opened_chat
    from nslora.tools.policies.environment import prepare_environment

    prepare_environment()
    talk = opened_chat(folder, base=base, max_tokens=max_tokens)
    _say(f"{folder}: a question goes to the bare base, then to the result. An empty line ends, /new begins anew.")
    while (question := _line()) != "":
        if question == "/new":
            talk.forget()
            continue
        try:
            if prompt:
                out.print(Text(talk.shown(question), style="dim"))
            for name, pieces in talk.ask(question):
                out.print(Text(f"{name:<7}", style="bold"), end=" ")
                for piece in pieces:
                    out.print(Text(piece), end="", soft_wrap=True)
                out.print()
        except NsloraError as error:  # a question that is too long ends no dialogue
            err.print(Text(str(error)))


def _line() -> str:
    """The next question; "" at the end of the input."""
    try:
        return input("you     ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _say(line: Any) -> None:
    out.print(line, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (answer, chat):
        app.command()(command)
