"""`nslora check`: a task as a model will see it, and what looks wrong with it. Only agents run a model."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from nslora.graph.cli.classifier import CombineOption, StyleOption
from nslora.graph.cli.common import BAD_INPUT, out
from nslora.tools.inference.weights import EMBEDDED_NAME

if TYPE_CHECKING:
    from nslora.tools.tasks.check import ShownRow, TaskCheck
    from nslora.tools.tasks.task import Task

_SHOWN = 600  # characters of a turn
SHOWN_STEPS = 20  # of a trajectory, before and after its fault


def checked(
    task: Annotated[str, typer.Argument(help="An embedded task (handbook), a task.yaml, or a folder with one.")],
    style: StyleOption = None,
    combine: CombineOption = None,
    ask_judges: Annotated[bool, typer.Option("--ask-judges", help="Let judges be asked, which costs money.")] = False,
    model: Annotated[
        str, typer.Option(help="Runs three examples of a task with an agent; 'none' runs none.")
    ] = EMBEDDED_NAME,
) -> None:
    """Show rows as the model will see them, and what looks wrong with a task. Exit status 1 if something is."""
    from nslora.tools.tasks.check import check_task
    from nslora.tools.tasks.task import load_task

    loaded = load_task(task, style=style, combine=combine)
    with out.status("judging references") as status:

        def on_progress(done: int, total: int) -> None:
            status.update(f"judging references: {done} of {total}")

        found = check_task(loaded, on_progress, ask_judges=ask_judges)
    _show(loaded, found)
    if loaded.agent:
        _show_agent(loaded, model)
    if found.wrong:
        raise typer.Exit(BAD_INPUT)


def _show(task: "Task", found: "TaskCheck") -> None:
    sizes = ", ".join(f"{size:,} {split}" for split, size in found.sizes.items())
    _line("task", f"{task.name}: {sizes} rows")
    for row in found.rows:
        _show_row(row)
    for split, (full, judged) in found.full.items():
        if judged:
            _line("reward", f"{split}: {full:,} of {judged:,} references earn full reward as they stand")
    for note in found.notes:
        _line("note", note)
    for problem in found.wrong:
        _line("wrong", problem, "bold red")
    _line("result", "nothing looks wrong" if not found.wrong else f"{len(found.wrong)} to mend")


def _show_agent(task: "Task", model: str) -> None:
    """Draw the agent's graph, run it on the first train rows, and show what it did."""
    from nslora.tools.agents.running import run_agent, try_agent, with_trajectories
    from nslora.tools.evaluation.rollouts import grade
    from nslora.tools.policies.local import LocalPolicy
    from nslora.tools.tasks.check import SHOWN_ROWS

    _line("agent", try_agent(task, task.prompt).get_graph().draw_mermaid().strip())
    if model == "none":
        return
    rows = task.train[:SHOWN_ROWS]
    with TemporaryDirectory() as folder, out.status(f"{model} runs {len(rows)} examples"):
        policy = LocalPolicy.load(model, adapters=Path(folder), notify=out.print)
        flown = run_agent(policy, None, task, task.prompt, rows, adapter=None)
    for each in grade(task.reward, with_trajectories(rows, flown.trajectories), flown.replies.texts):
        _line("trajectory", f"{each.example.id}\n{each.example.trajectory.told(_SHOWN, SHOWN_STEPS)}")
        _line("  answer", _short(each.reply) or "(none)")
        _line("  reward", f"{each.score.value:g}" + (f" {_short(each.score.feedback)}" if each.score.feedback else ""))


def _show_row(row: "ShownRow") -> None:
    _line("row", row.id)
    for message in row.messages:
        _line(f"  {message['role']}", _short(message["content"]))
    if row.reference is None:
        _line("  reference", "none")
        return
    more = f" (or: {', '.join(map(repr, row.answers[1:]))})" if row.answers else ""
    _line("  reference", _short(row.reference) + more)
    if row.reward is not None:
        _line("  reward", f"{row.reward:g}" + (f" {_short(row.feedback)}" if row.feedback else ""))


def _line(name: str, text: str, style: str = "bold") -> None:
    indent = "\n" + " " * 13
    out.print(Text.assemble((f"{name:<12}", style), f" {text.replace(chr(10), indent)}"), highlight=False)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
