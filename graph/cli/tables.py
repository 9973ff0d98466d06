"""Runs in tables, for people at a terminal: lists, rounds, comparisons, plans, questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langgraph.types import StateSnapshot
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from nslora.graph.cli.plain_console import PICTURES
from nslora.graph.runs.compare import Comparison
from nslora.graph.runs.view import Round, RoundDetails, RunView
from nslora.tools.files import quoted
from nslora.tools.workspace.budget import RunPlan

FAILURES_SHOWN = 12
TEXT_CHARACTERS, WHOLE = 160, 1_000_000


def show_runs(console: Console, found: Sequence[RunView]) -> None:
    """One line per run."""
    table = Table("task", "status", "rounds", "reward", "strategy", "seed", Column("run and origin", overflow="fold"))
    for run in found:
        if run.problem:
            table.add_row("", Text("unreadable", "red"), "", "", "", "", short(f"{run.folder}: {run.problem}", 400))
            continue
        table.add_row(
            run.task,
            run.status,
            str(len(run.rounds)),
            change(run.start_reward, run.best_reward),
            str(run.settings["strategy"]),
            str(run.settings["seed"]),
            "\n".join(part for part in (str(run.folder), origin(run)) if part),
        )
    console.print(table)


def show_view(console: Console, run: RunView) -> None:
    """The rounds of a run: decision, reasons, signal, demand, reward, kept, cost."""
    console.print(
        f"{run.folder}: {run.task}, {run.status}, seed {run.settings['seed']}, {run.settings['strategy']}"
        f"{'; ' + origin(run) if run.origin else ''}",
        highlight=False,
    )
    table = Table("round", "decision", "signal", "demand", "reward", "kept", "cost", show_lines=True)
    for each in run.rounds:
        fate = Text("kept", "green") if each.kept else Text("dropped", "yellow")
        fate = Text("failed", "red") if each.error else fate
        table.add_row(
            str(each.number),
            each.action,
            signal(each),
            _demand(each),
            change(each.reward_before, each.reward_after),
            fate,
            cost(each),
        )
    console.print(table)
    for each in run.rounds:
        console.print(f"round {each.number}: {short(each.reason)} {short(each.verdict)}")
    if run.stop:
        console.print(f"stop: {run.stop}")
    if run.status == "waiting":
        _answers_line(console, run.folder)


def show_round(console: Console, details: RoundDetails) -> None:
    """Failures with verdicts, training rows, critiques, the diff."""
    each = details.round
    console.print(
        Text.assemble(
            f"round {each.number}: ",
            (each.action, "bold"),
            f", {change(each.reward_before, each.reward_after)}. {short(each.verdict)}",
        )
    )
    console.print(f"why: {short(each.reason)}")
    table = Table("row", "split", "verdict", "P(content)", "reply", "feedback", title="failures that it started from")
    for failure in details.failures[:FAILURES_SHOWN]:
        verdict = failure.attribution
        table.add_row(
            failure.id,
            failure.split,
            verdict.verdict,
            f"{verdict.p_content:.2f}",
            short(failure.reply),
            short(failure.feedback),
        )
    console.print(table)
    if len(details.failures) > FAILURES_SHOWN:
        console.print(f"... and {len(details.failures) - FAILURES_SHOWN} more")
    if details.training_rows:
        rows = Table("row", "origin", "learnt reply", title=f"training rows ({len(details.training_rows)})")
        for row in details.training_rows[:FAILURES_SHOWN]:
            rows.add_row(row.source, row.origin, short(row.completion))
        console.print(rows)
    for number, critique in enumerate(details.critiques, 1):
        console.print(Panel(Text(short(critique, 2000)), title=f"the editor's critique {number}"))
    if details.diff:
        console.print(Panel(Syntax(details.diff, "diff", word_wrap=True), title="prompt"))


def show_editor_calls(console: Console, details: RoundDetails) -> None:
    """What the editor was sent, what it answered, why it stopped, the tokens, and which rows it was shown."""
    if not details.editor_calls:
        console.print(f"In round {details.round.number}, no editor was asked.")
    for number, call in enumerate(details.editor_calls, 1):
        about = "about " if call.estimated else ""
        console.print(
            f"call {number}: {call.purpose}, {short(call.model)}, {about}{call.input_tokens} tokens in, "
            f"{call.output_tokens} out, {call.seconds:.1f} s, finish reason {call.finish_reason or 'not told'}",
            highlight=False,
        )
        for role, text in call.request or [("", "(not on record: an earlier version of nslora kept its hash alone)")]:
            console.print(Panel(Text(short(text, WHOLE)), title=f"sent {role}"))
        console.print(Panel(Text(short(call.error or call.reply, WHOLE)), title="error" if call.error else "reply"))
    if details.rows_shown:
        told = ", ".join(f"{i} {row or '(a demonstration)'}" for i, row in enumerate(details.rows_shown, 1))
        console.print(f"rows shown: {told}", highlight=False)


def show_history(console: Console, checkpoints: Sequence[StateSnapshot]) -> None:
    """One line per checkpoint, the newest first: what comes next, and how far the run was."""
    lines = [f"{'checkpoint':36}  {'written':19}  {'round':>5}  {'next':13}  by"]  # a Table of 1,600 rows takes seconds
    for each in checkpoints:
        number, to_come = each.values.get("round", ""), ", ".join(each.next) or "the end"
        by = (each.metadata or {}).get("source", "")
        name, written = each.config["configurable"]["checkpoint_id"], str(each.created_at)[:19]
        lines.append(f"{name:36}  {written:19}  {number:>5}  {to_come:13}  {by}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Runs side by side; gains are paired by test question, against the first."""
    table = Table("", *(run.name for run in comparison.runs), title=f"test split, {comparison.questions} questions")
    rows = [
        ("all checks", [f"{run.all_checks:.2f}" for run in comparison.runs]),
        ("reward", [f"{run.reward:.3f}" for run in comparison.runs]),
        ("gain in all checks over the first", ["", *(interval(each.all_checks) for each in comparison.gains)]),
        ("gain in reward over the first", ["", *(interval(each.reward) for each in comparison.gains)]),
        ("rounds", [run.actions for run in comparison.runs]),
        ("strategy, seed", [f"{run.strategy}, {run.seed}" for run in comparison.runs]),
        ("seconds", [f"{run.wall_s:.0f}" for run in comparison.runs]),
        ("trained tokens", [f"{run.trained_tokens}" for run in comparison.runs]),
        ("editor calls", [f"{run.editor_calls:.0f}" for run in comparison.runs]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    console.print(table)
    if not comparison.one_task:
        console.print(
            "note: the questions are the same, the tasks are not (reward, prompt or other rows): a gain may "
            "be one of another yardstick.",
            highlight=False,
        )


def show_plan(console: Console, plan: RunPlan) -> None:
    """What a run would do and cost."""
    for name, text in plan.lines.items():
        console.print(f"{name:<11}{text}", highlight=False)
    for warning in plan.warnings:
        console.print(f"note       {warning}", highlight=False)
    console.print("Nothing was started.")


def show_question(console: Console, folder: Path, asked: Mapping[str, Any]) -> None:
    """What waits for a person, and how to answer."""
    screening = asked["screening"]
    kind = "edit" if asked["kind"] == "textgrad" else "training"
    console.print(f"round {asked['round']}: a proposed {kind} waits for your answer. {short(asked['note'])}")
    console.print(f"why: {short(asked['reason'])}")
    if asked["diff"]:
        console.print(Panel(Syntax(asked["diff"], "diff", word_wrap=True), title="prompt"))
    console.print(
        f"screening on {screening['rows']} train rows: reward {screening['kept']:.3f} -> {screening['proposed']:.3f}"
    )
    if asked.get("problem"):
        console.print(
            Text.assemble(("Your last answer could not be used:", "red"), f" {short(asked['problem'], 1000)}")
        )
    _answers_line(console, folder)


def _answers_line(console: Console, folder: Path) -> None:
    """The commands that answer, in one line that can be copied."""
    console.print(
        f"answer   nslora resume {quoted(folder)} --accept | --reject | --prompt FILE", highlight=False, soft_wrap=True
    )


def interval(values: tuple[float, float, float]) -> str:
    mean, low, high = values
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def change(before: float | None, after: float | None) -> str:
    words = ["-" if value is None else f"{value:.3f}" for value in (before, after)]
    return " -> ".join(words)


def origin(run: RunView) -> str:
    if not run.origin:
        return ""
    return f"{run.origin['kind']} of {run.origin['run']} at round {run.origin['round']}"


def signal(each: Round) -> str:
    return "\n".join(
        f"{kind} {values['value']:.2f}{' saturated' if values['saturated'] else ''}"
        for kind, values in each.signal.items()
    )


def _demand(each: Round) -> str:
    if not each.demand:
        return ""
    return f"{each.demand['failures']:.0f} fail\ncontent share {each.demand['p_content']:.2f}"


def cost(each: Round) -> str:
    parts = [f"{each.wall_s:.0f} s"]
    if each.trained_tokens:
        parts.append(f"{each.trained_tokens} trained")
    if each.generated_tokens:
        parts.append(f"{each.generated_tokens} generated")
    if each.editor.get("calls"):
        parts.append(f"{each.editor['calls']:.0f} calls")
    return "\n".join(parts)


def short(text: str, characters: int = TEXT_CHARACTERS) -> str:
    """Text of models and files, not endless, and without control sequences wherever it goes."""
    text = text.translate(PICTURES)
    return text if len(text) <= characters else text[:characters] + "..."
