"""`nslora merge-prompt`: the prompt of a finished run, trained into its weights."""

from typing import Annotated

import typer

from nslora.graph.cli.common import err, out
from nslora.graph.cli.runs import Folder, opened


def merge_prompt(
    folder: Folder,
    margin: Annotated[
        float | None, typer.Option(help="Largest loss of reward that validation may leave possible. Default: 0.15.")
    ] = None,
) -> None:
    """Train a result's prompt into its weights, so that requests need none; kept only if nothing is lost."""
    from nslora.graph.cli.stop_signals import report_when_stopped
    from nslora.tools.evaluation.acceptance import MARGIN
    from nslora.tools.files import from_here, quoted

    with report_when_stopped(err.print, "Stopped; replies and steps so far are kept: give the same command again."):
        run = opened(folder, None, needs_editor=False, notify=_say)
        merged = run.merge_prompt(margin=MARGIN if margin is None else margin)
    _say(merged.reason)
    if not merged.kept:
        _say(f"The result of {folder} stays as it is: adapter and prompt. See {from_here(merged.folder)}/report.json.")
        return
    test, where = merged.report["test"], quoted(from_here(merged.folder))
    _say(f"saves    {merged.saved_tokens} of {merged.row_tokens:.0f} tokens of a request with its reply")
    low, high = test["gain"]["interval"]
    _say(
        f"test     all checks {test['pair']['all_checks']:.2f} with the prompt, {test['result']['all_checks']:.2f} "
        f"without, difference {test['gain']['all_checks']:+.2f} [{low:+.2f}, {high:+.2f}]; it decided nothing"
    )
    _say(f"use      {where} in the place of the run: nslora export, answer, chat or serve {where}")


def _say(line: str) -> None:
    out.print(line, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command("merge-prompt")(merge_prompt)
