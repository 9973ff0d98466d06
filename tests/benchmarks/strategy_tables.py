"""Tables, figures and the plot of bench_strategies, computed from the records alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from form import README, Figure, figure, in_readme, publish
from signal_tables import signal_lines
from strategy_cells import NOTHING, RECORDS, ROUTER, ROUTER_SEEDS_OF_NOTHING, cells_of
from strategy_scores import (
    BUDGETS,
    Estimate,
    Record,
    Row,
    Scores,
    best_at,
    best_single_order,
    could_fall,
    delivered,
    gain_at,
    gain_over_budgets,
    left_alone,
    losses,
    made_worse,
    over_tasks,
    reward_at,
    single_kinds,
    without_further_tries,
)
from strategy_tasks import bench_tasks

TABLE, PICTURE = RECORDS.with_name("strategies.md"), RECORDS.with_name("strategies.svg")
GOALS = {"handbook": 0.80, "regret": 0.02, "left_alone": 0.95}
OTHERS = (
    "textgrad once -> lora",
    "random",
    "neurosymbolic-without-classifier",
    "neurosymbolic-without-signal",
    "neurosymbolic, no remade data",
)
PERCENT = [f"{100 * share:.0f} %" for share in BUDGETS]
POINTS = 200  # of a curve in the plot


def publish_all(records: Sequence[Record]) -> bool:
    """Print the figures; write the JSON, the Markdown tables and the plot. Returns whether every goal holds."""
    scores = Scores(records)
    tasks = scores.compared()
    if not tasks:
        print("No task has all strategies for a seed yet.")
        return False
    lost = losses(scores)
    TABLE.write_text(
        "\n".join([*summary_table(scores, tasks), "", *task_tables(scores), *loss_table(lost)]) + "\n", encoding="utf-8"
    )
    draw(scores, PICTURE)
    README.write_text(in_readme("bench-strategies", readme_lines(scores, records)), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))
    return publish(
        "strategies",
        figures(scores, records, tasks),
        "The router against fixed orders and ablations, at equal compute",
        rows=[row.__dict__ for row in scores.rows()],
        losses=lost,
    )


def readme_lines(scores: Scores, records: Sequence[Record]) -> list[str]:
    """The block in README.md: the summary, the comparisons, the router on each task, and the plot."""
    tasks = scores.compared()
    dates = sorted({each["date"] for each in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    planned = len(list(cells_of(bench_tasks(Path()))))  # the public sets too: counting cells reads no file
    seeds = {task: len(scores.seeds(task)) for task in tasks}
    return [
        *summary_table(scores, tasks),
        "",
        *comparisons(scores, tasks),
        "",
        *nothing_to_gain(records),
        "",
        further_tries(records),
        "",
        *signal_lines(records),
        "",
        "| task | planted | seeds | base | router (95 %) | best fixed order | regret |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(router_line(scores, task, seeds[task]) for task in tasks),
        "",
        *(line for strategy in scores.waiting for line in (waiting_line(scores, strategy), "")),
        f"`make bench-strategies DATA=folder`, {when}: {len(records)} of {planned} cells, each on one core of "
        f"{' and '.join(sorted({each['processor'] for each in records}))}. {waiting_words(scores)}"
        "Every table, and the cells where the router loses with their reasons: "
        "[strategies.md](records/strategies.md).",
        "",
        "![validation reward against compute, per task and strategy](records/strategies.svg)",
    ]


def further_tries(records: Sequence[Record]) -> str:
    """What the records say of the rule that weights are tried once from the start until an update is kept."""
    ours = [each for each in records if each["strategy"] == ROUTER]
    cut = [without_further_tries(each)[0] for each in ours]
    spent = [sum(each["curve"][-1][0] for each in some) for some in (cut, ours)]
    less = sum(delivered(a)["curve"][-1][1] < delivered(b)["curve"][-1][1] for a, b in zip(cut, ours, strict=True))
    fates = [(each["task"], fate) for each in records for fate in without_further_tries(each)[1]]
    gaining = {each["task"] for each in records if each["changed"]}
    somewhere = sum(task in gaining for task, _ in fates)
    return (
        "In these cells `neurosymbolic` goes by the monitoring signal, as the default did then; without it, the router "
        "is `neurosymbolic-without-signal`. They are older than the rule that weights are tried once from the start "
        "until an update is kept (`routing.tries_from_start`). In the records of all strategies, "
        f"{sum(kept for _, kept in fates)} of {len(fates)} further tries were kept; only {somewhere} of them are on "
        f"tasks where some strategy gains anything, so their worth there is hardly known. Without them the "
        f"router's {len(ours)} cells take {spent[0]:.0f} TFLOP instead of {spent[1]:.0f}; cells that deliver less on "
        f"validation: {less}."
    )


def waiting_words(scores: Scores) -> str:
    """A sentence that names the strategies with too few cells; "" if there are none."""
    if not scores.waiting:
        return ""
    return (
        "Not in the tables yet: "
        + ", ".join(f"`{strategy}` ({100 * share:.0f} % of its cells)" for strategy, share in scores.waiting.items())
        + ". "
    )


def waiting_line(whole: Scores, strategy: str) -> str:
    """The router against a strategy with too few cells, on the cells that this strategy has."""
    cells = {(task, seed) for task, each, seed in whole.records if each == strategy}
    scores = Scores(
        record
        for (task, each, seed), record in whole.records.items()
        if each in (*whole.strategies, strategy) and (task, seed) in cells
    )
    tasks = scores.compared()
    if not tasks:
        return ""
    gain, (low, high) = over_tasks(scores, ROUTER, strategy, tasks)
    return (
        f"Left out above, `{strategy}` has {sum(len(scores.seeds(task)) for task in tasks)} cells on "
        f"{len(tasks)} tasks ({', '.join(tasks)}). There, router less it: {gain:+.3f} [{low:+.3f}, {high:+.3f}] in "
        f"all checks; over all budgets {against(scores, strategy).partition(': ')[2]}; validation reward at "
        f"{', '.join(PERCENT)} of the compute {by_budget(scores, ROUTER)} against {by_budget(scores, strategy)}; "
        f"to 90 % of the gain on {compute(scores, ROUTER, tasks):.0f} TFLOP against "
        f"{compute(scores, strategy, tasks):.0f}."
    )


def by_budget(scores: Scores, strategy: str) -> str:
    """Validation reward at each of the budgets, mean over the tasks."""
    reached = np.mean([scores.row(task, strategy).by_budget for task in scores.compared()], axis=0)
    return ", ".join(f"{value:.2f}" for value in reached)


def comparisons(scores: Scores, tasks: Sequence[str]) -> list[str]:
    """The difference between the router and each other strategy: at the end, at each budget, over all budgets."""
    order = best_single_order(scores, tasks)
    lines = [
        "The router less others. Intervals of 95 % draw seeds (and, of all checks, questions) within these tasks; "
        "the last column draws tasks too. What is best at a budget is known only later.",
        "",
        "| of | at | less | difference | 95 % | tasks drawn too |",
        "| --- | --- | --- | --- | --- | --- |",
        line(
            "all checks, test",
            "the end",
            f"the best order, `{order}`",
            *(over_tasks(scores, ROUTER, order, tasks, tasks_too=each) for each in (False, True)),
        ),
    ]
    for budget, share in enumerate(PERCENT):
        best, _ = best_at(scores, tasks, budget)
        lines.append(
            line(
                "validation reward",
                f"{share} of compute",
                f"the best order there, `{best}`",
                *(gain_at(scores, ROUTER, best, budget, tasks_too=each) for each in (False, True)),
            )
        )
    others = [other for other in dict.fromkeys((order, *OTHERS)) if other in scores.strategies]
    return lines + [
        line(
            "validation reward",
            "all budgets",
            f"`{other}`",
            *(gain_over_budgets(scores, ROUTER, other, tasks_too=each) for each in (False, True)),
        )
        for other in others
    ]


def line(of: str, at: str, less: str, here: Estimate, anywhere: Estimate) -> str:
    (gain, (low, high)), (_, (least, most)) = here, anywhere
    return f"| {of} | {at} | {less} | {gain:+.3f} | [{low:+.3f}, {high:+.3f}] | [{least:+.3f}, {most:+.3f}] |"


def against(scores: Scores, other: str) -> str:
    gain, (low, high) = gain_over_budgets(scores, ROUTER, other)
    return f"`{other}`: {gain:+.3f} [{low:+.3f}, {high:+.3f}]"


def nothing_to_gain(records: Sequence[Record]) -> list[str]:
    """The router's runs on each task with nothing to gain, and how often a result fell below its base.

    Luck is the largest validation gain of any candidate. Without luck, no candidate could be mistaken for better.
    """
    lines = [
        "| nothing to gain | runs | base on validation | updates a run | luck on validation, largest | "
        "ended with no change | TFLOP |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in NOTHING:
        runs = [each for each in records if (each["task"], each["strategy"]) == (task, ROUTER)]
        if runs:
            bases = [each["curve"][0][1] for each in runs]
            luck = max(
                [
                    step["reward"] - base
                    for each, base in zip(runs, bases, strict=True)
                    for step in each["rounds"]
                    if step["reward"] is not None
                ],
                default=0.0,
            )
            lines.append(
                f"| {task} | {len(runs)} | {np.mean(bases):.2f} | "
                f"{np.mean([len(each['rounds']) for each in runs]):.1f} | "
                f"{max(0.0, luck):+.2f} | {left_alone(records, [task])[0]} | "
                f"{np.mean([each['cost']['tflop'] for each in runs]):.0f} |"
            )
    return [
        *lines,
        "",
        f"Of the router's {could_fall(records)} runs over all tasks that changed a base which passes "
        f"anything, {len(made_worse(records))} ended significantly below it.",
    ]


def compute(scores: Scores, strategy: str, tasks: Sequence[str]) -> float:
    """Mean TFLOP over the tasks until a strategy has 90 % of its own gain in validation reward."""
    return float(np.mean([scores.row(task, strategy).near_final_tflop for task in tasks]))


def router_line(scores: Scores, task: str, seeds: int) -> str:
    row, order = scores.row(task, ROUTER), scores.best_order(task)
    base = float(scores.questions(task, ROUTER, "base").mean())
    return (
        f"| {task} | {scores.of(task, ROUTER)[0]['planted']} | {seeds} | {base:.2f} | {row.all_checks:.2f} "
        f"[{row.interval[0]:.2f}, {row.interval[1]:.2f}] | `{order}` {scores.mean(task, order):.2f} | "
        f"{row.regret:+.3f} |"
    )


def figures(scores: Scores, records: Sequence[Record], tasks: Sequence[str]) -> list[Figure]:
    """The figures of the benchmark, with their goals."""
    handbook = [task for task in tasks if task.startswith("handbook-")]
    found = [
        figure(f"{task}: all checks of the router", scores.mean(task, ROUTER), at_least=GOALS["handbook"])
        for task in handbook
    ]
    for kind in single_kinds(scores) if handbook else ():
        gain, interval = over_tasks(scores, ROUTER, kind, handbook)
        found += [
            figure(f"handbook: router less {kind}", gain),
            figure(f"handbook: router less {kind}, lower end of 95 %", interval[0], at_least=1e-9),
        ]
    order = best_single_order(scores, tasks)
    gain, interval = over_tasks(scores, ROUTER, order, tasks)
    found += [
        figure(
            "mean regret to each task's best fixed order",
            float(np.mean([scores.regret(t, ROUTER) for t in tasks])),
            at_most=GOALS["regret"],
        ),
        figure(f"all tasks: router less the best single order ({order})", gain, at_least=0.0),
        figure("all tasks: the same, lower end of 95 %", interval[0]),
        figure("all tasks: the same, upper end of 95 %", interval[1]),
    ]
    gain, interval = gain_over_budgets(scores, ROUTER, order)
    found += [
        figure(f"validation reward over all budgets: router less {order}", gain),
        figure("the same, lower end of 95 %", interval[0]),
    ]
    alone, runs = left_alone(records)
    if runs:
        whole = runs >= ROUTER_SEEDS_OF_NOTHING * len(NOTHING)
        found.append(
            figure(
                f"nothing to gain: 'no change', of {runs} runs",
                alone / runs,
                at_least=GOALS["left_alone"] if whole else None,
            )
        )
    found.append(figure("runs of the router significantly below their base", len(made_worse(records)), at_most=0))
    found.append(figure("cells on record", len(records)))
    return found


def summary_table(scores: Scores, tasks: Sequence[str]) -> list[str]:
    """One row per strategy: means over all compared tasks."""
    lines = [
        f"Over {len(tasks)} tasks ({', '.join(tasks)}), mean of the tasks' means. TFLOP to 90 %: of what the "
        "strategy itself gains in validation reward; one that gains nothing is there at its first evaluation. "
        "An arrow means: when the kind before it is saturated (two updates dropped in a row, as for the router), "
        "or after one update (`once`). "
        "Cells won: no strategy did better, those left out in which all tie. "
        "Over all budgets: validation reward reached by then, mean over every amount of compute up to the cap; "
        f"the last columns: at {', '.join(PERCENT)} of it, in the same runs.",
        "",
        "| strategy | all checks | regret | cells won | TFLOP to 90 % | TFLOP | over all budgets | "
        + " | ".join(PERCENT)
        + " |",
        "| --- | --- | --- | --- | --- | --- | --- |" + " --- |" * len(BUDGETS),
    ]
    for strategy in sorted(scores.strategies, key=lambda each: -float(np.mean([scores.mean(t, each) for t in tasks]))):
        rows = [scores.row(task, strategy) for task in tasks]
        means = {
            name: float(np.mean([getattr(row, name) for row in rows]))
            for name in ("all_checks", "regret", "near_final_tflop", "tflop", "over_budgets")
        }
        wins, decided = np.sum([scores.wins(task, strategy) for task in tasks], axis=0)
        reached = np.mean([row.by_budget for row in rows], axis=0)
        lines.append(
            f"| `{strategy}` | {means['all_checks']:.3f} | {means['regret']:+.3f} | {wins} of {decided} | "
            f"{means['near_final_tflop']:.0f} | {means['tflop']:.0f} | {means['over_budgets']:.3f} | "
            + " | ".join(f"{value:.2f}" for value in reached)
            + " |"
        )
    return lines


def task_tables(scores: Scores) -> list[str]:
    """One table per task."""
    lines: list[str] = []
    for task in scores.compared():
        rows = [scores.row(task, strategy) for strategy in scores.strategies]
        base = float(scores.questions(task, ROUTER, "base").mean())
        some = scores.of(task, ROUTER)[0]
        lines += [
            f"### {task}",
            "",
            f"Planted: {some['planted']}. Base {base:.2f}. {rows[0].seeds} seeds, cap {some['cap_tflop']:g} "
            f"TFLOP, {len(some['base']['passed'])} test questions.",
            "",
            "| strategy | all checks (95 %) | reward | won | regret | over all budgets | TFLOP to 90 % | TFLOP | "
            "editor tokens | wall s |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [line_of(row) for row in sorted(rows, key=lambda row: -row.all_checks)] + [""]
    return lines


def line_of(row: Row) -> str:
    low, high = row.interval
    return (
        f"| `{row.strategy}` | {row.all_checks:.2f} [{low:.2f}, {high:.2f}] | {row.reward:.3f} | "
        f"{'–' if row.won is None else f'{row.won:.2f}'} | "
        f"{row.regret:+.3f} | {row.over_budgets:.3f} | {row.near_final_tflop:.0f} | {row.tflop:.0f} | "
        f"{row.editor_tokens:.0f} | {row.wall_s:.0f} |"
    )


def loss_table(lost: Sequence[dict[str, Any]]) -> list[str]:
    """The cells in which the task's best fixed order beats the router."""
    if not lost:
        return ["### Cells where the router loses", "", "None."]
    return [
        "### Cells where the router loses",
        "",
        "Kept updates plain, dropped ones in brackets.",
        "",
        "| task | seed | behind | against | router | fixed order | reason |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {each['task']} | {each['seed']} | {each['behind']:.2f} | `{each['order']}` | {each['router']} | "
            f"{each['fixed']} | {each['reason']} |"
            for each in lost
        ),
    ]


def draw(scores: Scores, path: Path) -> None:
    """Plot validation reward of the best candidate against compute: mean over seeds, one panel per task."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "nslora", "font.size": 8})
    from matplotlib import pyplot

    tasks, columns = scores.compared(), 3
    lines = -(-len(tasks) // columns)
    shape = pyplot.subplots(lines, columns, figsize=(3.6 * columns, 2.5 * lines + 0.8), squeeze=False)
    drawing, panels = shape
    colours = dict(zip(scores.strategies, [*pyplot.get_cmap("tab10").colors, "black"], strict=False))
    for panel, task in zip(panels.flat, tasks, strict=False):
        cap = max(curve["curve"][-1][0] for strategy in scores.strategies for curve in scores.of(task, strategy))
        grid = np.linspace(0, cap, POINTS)
        for strategy in scores.strategies:
            rewards = np.mean(
                [[reward_at(each, point) for point in grid] for each in scores.of(task, strategy)], axis=0
            )
            ours = strategy == ROUTER
            panel.plot(
                grid,
                rewards,
                label=strategy,
                color=colours[strategy],
                drawstyle="steps-post",
                linewidth=2.2 if ours else 1.0,
                zorder=3 if ours else 2,
                linestyle="-" if ours else "--",
            )
        panel.set(title=task, xlabel="TFLOP", ylabel="validation reward", ylim=(-0.03, 1.03))
    for panel in list(panels.flat)[len(tasks) :]:
        panel.axis("off")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    drawing.tight_layout(rect=(0, 0.9 / (2.5 * lines + 0.8), 1, 1))
    drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)
