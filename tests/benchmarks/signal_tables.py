"""Does the monitoring signal pay? Pairs of recorded runs: the router with it, and without."""

from collections.abc import Iterable, Sequence

from strategy_scores import Estimate, Record, Scores, gain_over_budgets, more_compute, over_tasks, without_further_tries

WITH, WITHOUT = "neurosymbolic", "neurosymbolic-without-signal"  # as the records name them
SAVES = 0.2  # share of the compute that the signal has to save at equal reward


def signal_lines(records: Iterable[Record]) -> list[str]:
    """The comparison as Markdown: as recorded, and by today's rule of one try from the start."""
    ours = [each for each in records if each["strategy"] in (WITH, WITHOUT)]
    recorded, cut = Scores(ours), Scores(without_further_tries(each)[0] for each in ours)
    tasks = recorded.compared()
    if len(recorded.strategies) < 2 or not tasks:
        return ["No run with the signal has a recorded pair without it."]
    pairs = [(task, i) for task in tasks for i in range(len(recorded.seeds(task)))]
    alike = sum(
        recorded.of(task, WITH)[i]["result"]["passed"] == recorded.of(task, WITHOUT)[i]["result"]["passed"]
        for task, i in pairs
    )
    rows = [("all checks, test", over_tasks(recorded, WITH, WITHOUT, tasks), _too(recorded, tasks))]
    for words, scores in (("", recorded), (", one try from the start", cut)):
        area = [gain_over_budgets(scores, WITH, WITHOUT, tasks_too=too) for too in (False, True)]
        compute = [more_compute(scores, WITH, WITHOUT, tasks_too=too) for too in (False, True)]
        rows += [(f"validation reward, all budgets{words}", *area), (f"compute, as a share{words}", *compute)]
    return [
        f"The router with the monitoring signal less the router without it, {len(pairs)} pairs of runs (task and seed) "
        f"on {len(tasks)} tasks; in {alike} of them both results pass the same test questions:",
        "",
        "| of | difference | 95 % | tasks drawn too |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {drawn[0]:+.4f} | {_interval(drawn)} | {_interval(too)} |" for name, drawn, too in rows),
        "",
        f"The signal pays if it takes {100 * SAVES:.0f} % less compute at equal reward, or if the interval over all "
        f"budgets lies above 0. It {'pays' if pays(recorded, tasks) else 'does not'}.",
    ]


def pays(scores: Scores, tasks: Sequence[str]) -> bool:
    """Whether the signal saves a fifth of the compute at equal final reward, or brings a larger area."""
    equal = over_tasks(scores, WITH, WITHOUT, tasks)[1][0] >= 0
    saves = more_compute(scores, WITH, WITHOUT)[1][1] <= -SAVES
    return (equal and saves) or gain_over_budgets(scores, WITH, WITHOUT)[1][0] > 1e-9


def _too(scores: Scores, tasks: Sequence[str]) -> Estimate:
    return over_tasks(scores, WITH, WITHOUT, tasks, tasks_too=True)


def _interval(estimate: Estimate) -> str:
    low, high = estimate[1]
    return f"[{low:+.4f}, {high:+.4f}]"
