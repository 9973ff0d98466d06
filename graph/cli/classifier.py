"""`nslora classify` and `nslora diagnose`: what failing replies need, without and with a model. No graph runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nslora.graph.cli.plain_console import PlainConsole
from nslora.tools.errors import SettingsError
from nslora.tools.files import write_json
from nslora.tools.schema import as_record

if TYPE_CHECKING:
    from nslora.tools.workspace.diagnosis import Diagnosis
    from nslora.tools.workspace.reply_log import ReplyReport, ReplyVerdict

EXAMPLES = 2  # a verdict, on the console; --json holds all
SHOWN = 160  # characters of a text on the console
REPAIRS = {"content": "weights (content mended)", "form": "prompt (form mended)", "both": "both"}

TaskArgument = Annotated[str, typer.Argument(help="An embedded task (handbook), a task.yaml, or a folder with one.")]
StyleOption = Annotated[str | None, typer.Option(help="House style, for tasks that have several.")]
CombineOption = Annotated[str | None, typer.Option(help="mean or all: graded or all-or-nothing reward.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write everything that was found to this file.")]


def classify_log(
    task: TaskArgument,
    replies: Annotated[Path, typer.Option(help="JSONL, JSON, CSV or Parquet: question, reference, reply.")],
    reply_field: Annotated[str, typer.Option(help="Field that holds the reply.")] = "reply",
    question_field: Annotated[str, typer.Option(help="Field that holds the question.")] = "question",
    reference_field: Annotated[str, typer.Option(help="Field that holds the reference.")] = "reference",
    style: StyleOption = None,
    combine: CombineOption = None,
    json_: JsonOption = None,
) -> None:
    """Say of each failing reply in a log whether it needs other content, another form, or both. Loads no model."""
    from nslora.tools.tasks.task import load_task
    from nslora.tools.workspace.reply_log import classify_replies

    out = PlainConsole(soft_wrap=False)
    _refuse_unwritable(json_)
    report = classify_replies(
        load_task(task, style=style, combine=combine),
        replies,
        reply_field=reply_field,
        question_field=question_field,
        reference_field=reference_field,
    )
    _show_report(out, report)
    if json_:
        save(json_, report)
        out.print(f"all of them: {json_}", highlight=False)


def diagnosed(
    task: TaskArgument,
    model: Annotated[str, typer.Option(help="Embedded name, folder, .gguf file, or hub id.")] = "SmolLM2-135M-Instruct",
    style: StyleOption = None,
    combine: CombineOption = None,
    json_: JsonOption = None,
) -> None:
    """Say what stands between a model and a task, before anything is trained and any editor is called."""
    import tempfile

    from nslora.graph.cli.stop_signals import report_when_stopped
    from nslora.tools.inference.reply_cache import ReplyCache
    from nslora.tools.inference.weights import cache_folder
    from nslora.tools.policies.environment import prepare_environment
    from nslora.tools.policies.local import LocalPolicy
    from nslora.tools.tasks.task import load_task
    from nslora.tools.workspace.diagnosis import diagnose

    prepare_environment()
    out = PlainConsole(soft_wrap=False)
    loaded = load_task(task, style=style, combine=combine)
    _refuse_unwritable(json_)
    stopped = report_when_stopped(out.print, "Stopped: nothing was written, and the same command begins again.")
    with stopped, tempfile.TemporaryDirectory() as scratch, out.status("asking the model") as status:
        policy = LocalPolicy.load(model, adapters=Path(scratch), notify=out.print)

        def on_progress(done: int, total: int) -> None:
            status.update(f"asking the model: {done} of {total} replies")

        found = diagnose(loaded, policy, cache=ReplyCache(cache_folder() / "replies.sqlite"), on_progress=on_progress)
    _show_diagnosis(out, found)
    if json_:
        save(json_, found)
        out.print(f"all of it: {json_}", highlight=False)


def _refuse_unwritable(path: Path | None) -> None:
    """Raise SettingsError, before any work is done, if the file could not be written."""
    if path is None:
        return
    try:
        place = next(each for each in path.resolve().parents if each.exists())
        possible = not path.is_dir() and place.is_dir() and os.access(place, os.W_OK)
    except OSError:  # a name that no file system takes
        possible = False
    if not possible:
        raise SettingsError(f"--json {path}: the file cannot be written there; name another.")


def save(path: Path, found: "ReplyReport | Diagnosis") -> None:
    """Write all results. Raises SettingsError if the file cannot be written."""
    try:
        write_json(path, as_record(found))
    except OSError as error:
        raise SettingsError(f"--json {path}: the file cannot be written ({error.strerror}).") from error


def _show_report(out: Console, report: "ReplyReport") -> None:
    """Shares, then examples with the repaired replies."""
    need = report.need
    out.print(
        f"replies  {report.rows}: {report.passed} earn full reward, {need.failures} fail; mean reward "
        f"{report.reward:.3f}",
        highlight=False,
    )
    if not need.failures:
        out.print("Nothing to classify: every reply earns full reward.")
        return
    out.print(shares(need))
    layouts = (
        f"{report.known_good} replies that earned full reward"
        if report.known_good
        else "the reward's own suggestions"
        if report.suggested
        else "none: no reply earned full reward"
    )
    noise = f"; noise of the reward {report.tolerance:.2f}" if report.tolerance else ""
    out.print(f"layouts  from {layouts}; {report.reward_calls} reward calls{noise}", highlight=False)
    for verdict in ("content", "form", "both"):
        for each in [each for each in report.verdicts if each.verdict == verdict][:EXAMPLES]:
            _show_reply(out, each)


def shares(need: Any) -> Table:
    """The three verdicts as a table."""
    table = Table(title=f"what the {need.failures} failing replies need", title_justify="left")
    for column in ("content", "form", "both", "P(content), by missing reward"):
        table.add_column(column, justify="right")
    table.add_row(f"{need.content:.0%}", f"{need.form:.0%}", f"{need.both:.0%}", f"{need.p_content:.2f}")
    return table


def _show_reply(out: Console, each: "ReplyVerdict") -> None:
    mended = "no single repair was paid for" if each.repaired is None else _one_line(each.repaired)
    earned = "" if each.repaired_reward is None else f"  (reward {each.repaired_reward:.2f})"
    out.print(Text.assemble("\n", (each.verdict, "bold"), f"  {each.id}: {_one_line(each.question)}"))
    out.print(f"  reply     {_one_line(each.reply)}  (reward {each.reward:.2f})", highlight=False)
    out.print(f"  repaired  {mended}{earned}", highlight=False)


def _show_diagnosis(out: Console, found: "Diagnosis") -> None:
    """What stands in the way, what could be mended, what cannot be seen, what it costs, and the advice."""
    checks = ", ".join(f"{name} {value:.2f}" for name, value in found.checks.items())
    low, high = found.interval
    out.print(
        f"{found.model} on {found.task}, as it is: reward {found.reward:.3f} on {found.validation_rows} "
        f"validation rows (95 % {low:.3f} to {high:.3f}), {found.train_reward:.3f} on {found.train_rows} train "
        f"rows; all checks {found.all_checks:.2f} ({checks})",
        highlight=False,
    )
    if found.need.failures:
        out.print(shares(found.need))
        for each in found.examples:
            out.print(
                f"  {each.attribution.verdict:<8}{_one_line(each.question)}\n"
                f"          reply     {_one_line(each.reply)}",
                highlight=False,
            )
            if each.attribution.repaired is not None:
                out.print(f"          repaired  {_one_line(each.attribution.repaired)}", highlight=False)
        out.print(_bounds_table(found))
        out.print(
            f"too small to see on {found.validation_rows} validation rows: gains in mean reward below "
            f"{found.smallest_detectable:.3f} (one-sided paired test, level {found.level:g})",
            highlight=False,
        )
        out.print(_cost_table(found))
    out.print(Text.assemble(("advice", "bold"), f"   {found.advice}: {found.reason}"))


def _bounds_table(found: "Diagnosis") -> Table:
    table = Table(title="upper bounds, from repairs that the reward paid for", title_justify="left")
    for column in ("mended", "reward", "gain", "95 % interval"):
        table.add_column(column, justify="left" if column == "mended" else "right")
    for bound in found.bounds:
        low, high = bound.interval
        table.add_row(REPAIRS[bound.repair], f"{bound.reward:.3f}", f"{bound.gain:+.3f}", f"{low:+.3f} to {high:+.3f}")
    return table


def _cost_table(found: "Diagnosis") -> Table:
    table = Table(title="about what it would cost here, at the speed of this evaluation", title_justify="left")
    for column in ("", "tokens", "seconds"):
        table.add_column(column, justify="right" if column else "left")
    for cost in found.costs:
        low, high = cost.seconds
        table.add_row(cost.what, f"{cost.tokens}", f"{low:.0f} to {high:.0f}")
    return table


def _one_line(text: str) -> str:
    """A text on one line, shortened if it is long."""
    line = text.replace("\n", "\\n")
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
