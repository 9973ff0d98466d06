"""What a person sees of a run: progress while it works, one line a round, and the result.

Consoles take no markup: most of what is shown was written by models, editors and users, and may hold any brackets.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from nslora.graph.cli.meter import Meter
from nslora.graph.routing import NODE_OF
from nslora.tools.files import quoted

WORKING = {
    "evaluate": "evaluate: replies on validation and a sample of train",
    "classify": "classify",
    "lora_update": "lora_update: training",
    "textgrad_edit": "textgrad_edit: asking the editor",
    "approve": "approve: what a person is to be shown",
    "finish": "finish: the test split",
    "monitor": "monitor",
}
NEXT = {"evaluate": "monitor", "lora_update": "evaluate", "textgrad_edit": "evaluate", "approve": "evaluate"}


def progress_line(console: Console) -> Progress:
    """One line in any width: the step with its time left, and what a meter says of the whole run (`run`)."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[run]}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
    )


def show_run(console: Console, events: Iterator[tuple[str, Any]], meter: Meter) -> None:
    """Follow a stream of ("updates" | "custom", part) to its end."""
    with progress_line(console) as bar:
        task = bar.add_task(WORKING["evaluate"], total=None, run=meter.line())
        for mode, part in events:
            if mode == "custom":
                words, done, total = f"{part['node']}: {part['what']}", part["done"], part["total"]
                bar.update(task, description=words, completed=done, total=total, run=meter.line())
                continue
            for node, changes in part.items():
                if node == "__interrupt__":  # a question to a person, shown when the stream has ended
                    continue
                meter.saw(changes or {})
                show_node(console, node, changes or {})
                upcoming = next_node(node, changes or {})
                bar.reset(task, description=WORKING.get(upcoming, upcoming), total=None, run=meter.line())


def next_node(node: str, changes: Mapping[str, Any]) -> str:
    """The node that is about to work, for the progress line."""
    if node in NEXT:
        return NEXT[node]
    if changes.get("stop"):
        return "finish"
    decision = changes.get("decision")
    if node == "classify" and decision:
        return NODE_OF.get(decision["action"], "finish")
    return "classify"


def show_node(console: Console, node: str, changes: Mapping[str, Any]) -> None:
    """The lines that a finished node is worth."""
    if node == "monitor" and changes.get("start_measured"):
        start = changes["start_measured"]
        console.print(
            f"start    reward {start['reward']:.3f}, all checks {start['all_checks']:.2f} on validation "
            f"({start['failures']} failures)"
        )
    for record in changes.get("rounds", ()):
        console.print(_round_line(record), highlight=False)
    if changes.get("stop"):
        console.print(f"stop     {changes['stop']}")


def _round_line(record: Mapping[str, Any]) -> Text:
    """action, why, reward before and after, kept or dropped, cost."""
    after = record["reward_after"]
    colour = "green" if record["kept"] else "yellow"
    cost = [f"{record['wall_s']:.0f} s"]
    if record["trained_tokens"]:
        cost.append(f"{record['trained_tokens']} trained tokens")
    if record["generated_tokens"]:
        cost.append(f"{record['generated_tokens']} generated")
    if record["editor"].get("calls"):
        cost.append(f"{record['editor']['calls']:.0f} editor calls")
    reward = f"{record['reward_before']:.3f} -> {'failed' if after is None else format(after, '.3f')}"
    words = [f"why: {record['reason']}", record["note"], record["verdict"]]
    return Text.assemble(
        f"round {record['round']}  ",
        (f"{record['action']:<8}", "bold"),
        f"  reward {reward}  ",
        ("kept" if record["kept"] else "dropped", colour),
        f"  ({', '.join(cost)})",
        *(f"\n         {line}" for line in words if line),
    )


def show_result(console: Console, folder: Path, report: Mapping[str, Any]) -> None:
    """The prompt's diff, base and result on the test split, and the folder of the result."""
    from nslora.tools.workspace.report import has_long_prompt

    if report["prompt_diff"]:
        console.print(Panel(Syntax(report["prompt_diff"], "diff", word_wrap=True), title="prompt"))
    else:
        console.print("The prompt is unchanged.")
    if report["result"]["adapter"] == report["start"]["adapter"]:
        console.print(f"The weights are unchanged{'' if report['result']['adapter'] else ': result/ has no adapter'}.")
    test = report["test"]
    table = Table(title=f"test split, {test['questions']} questions, looked at once")
    checks = list(dict.fromkeys(name for which in ("base", "result") for name in test[which]["checks"]))
    for column in ("", "all checks", "95 % interval", *checks, "reward"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("base", "result"):
        numbers = test[name]
        table.add_row(
            name,
            f"{numbers['all_checks']:.2f}",
            words(numbers["interval"]),
            *(f"{numbers['checks'][check]:.2f}" if check in numbers["checks"] else "–" for check in checks),
            f"{numbers['reward']:.3f}",
        )
    console.print(table)
    show_labels(console, report)
    gain = test["gain"]
    console.print(
        f"gain in all checks {gain['all_checks']:+.2f}, 95 % interval {words(gain['interval'])}, paired by question"
    )
    partly = any(test[which]["reward"] != test[which]["all_checks"] for which in ("base", "result"))
    if partly and "reward_interval" in gain:  # a run of an earlier version has none
        console.print(f"gain in reward {gain['reward']:+.3f}, 95 % interval {words(gain['reward_interval'])}")
    gap = report.get("overfit_gap", {"result": None})  # a run of an earlier version has none
    if gap["result"] is not None:
        console.print(
            f"overfit  reward on validation {report['validation']['result']['reward']:.3f}, on test "
            f"{test['result']['reward']:.3f}: gap {gap['result']:+.3f} (base {gap['base'] or 0.0:+.3f})"
        )
    tokens = report.get("prompt_tokens", {})  # a run of an earlier version has none
    if tokens.get("result") is not None:
        console.print(
            f"prompt   adds {tokens['result']} tokens to each row trained on and each reply served (base "
            f"{tokens['base']})"
        )
    if has_long_prompt(report):
        console.print(
            f"         that is {report['prompt_share']:.0%} of a row: nslora merge-prompt {quoted(folder)} trains it "
            "into the weights, if nothing is lost",
            highlight=False,
            soft_wrap=True,
        )
    console.print(cost_line(report))
    for name, judge in report.get("judges", {}).items():
        console.print(judge_line(name, judge), highlight=False)
    for problem in report.get("editor_problems", ()):  # a run of an earlier version has none
        console.print(problem_line(problem), highlight=False)
    console.print(f"result   {folder / 'result'}", highlight=False, soft_wrap=True)


def show_labels(console: Console, report: Mapping[str, Any]) -> None:
    """The numbers of classification on the test split, of base and result, for each `label` check."""
    for which in ("base", "result"):
        for check, numbers in report["test"][which].get("labels", {}).items():
            title = (
                f"{which}, {check}: macro-F1 {numbers['macro_f1']:.3f}, {numbers['no_label']} replies without a label"
            )
            table = Table("label", title=title)
            for column in ("precision", "recall", "F1", "rows"):
                table.add_column(column, justify="right")
            for label, row in numbers["labels"].items():
                table.add_row(
                    label, *(f"{row[each]:.3f}" for each in ("precision", "recall", "f1")), str(row["support"])
                )
            console.print(table)


def cost_line(report: Mapping[str, Any]) -> str:
    """What the run cost, with its first evaluation and the test; replies that the cache had are said beside it."""
    cost = report["cost"]
    cached = cost.get("cached_replies", 0)  # a run of an earlier version has no such field
    known = f" and {cached:.0f} replies from the cache" if cached else ""
    return (
        f"cost     {report['wall_s']:.0f} s, {cost['trained_tokens']} trained and {cost['generated_tokens']} "
        f"generated tokens{known} ({tflop(cost['tflop'] + cost.get('test_tflop', 0.0))} TFLOP), "
        f"{cost['editor_calls']:.0f} editor calls, peak memory {report['peak_rss_mb']:.0f} MiB"
    )


def judge_line(name: str, judge: Mapping[str, Any]) -> str:
    """What a judge was asked, and what it cost."""
    return (
        f"judge    {name} ({judge['model']}): {judge['judged']} replies judged, {judge['wavered']} of them differently "
        f"by further samples; {judge['calls']} calls, {judge['tokens']} tokens, cost {judge['cost']:g}"
    )


def problem_line(problem: Mapping[str, Any]) -> str:
    """What of the editor's calls failed, how often, and why."""
    often = "once" if problem["times"] == 1 else f"{problem['times']} times"
    return f"editor   round {problem['round']}, {problem['purpose']}, {often}: {problem['why']}"


def tflop(value: float) -> str:
    """Two digits that say something, also of a run of a tiny model."""
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def words(interval: list[float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"
