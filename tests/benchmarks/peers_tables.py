"""Tables and figures of bench_peers, all from the records; nothing is typed in by hand."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from form import Figure, figure, publish

from nslora.tools.statistics import bootstrap_interval

Record = Mapping[str, Any]
OURS, UNTOUCHED = "nslora", "base"
COMMAND = "make bench-peers"


def groups_of(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """Records by task and peer, in the order in which they came."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for each in records:
        groups.setdefault(each["task"], {}).setdefault(each["peer"], []).append(each)
    return groups


def questions(records: Sequence[Record]) -> list[float]:
    """Share of seeds in which each test question was answered in full: intervals are over questions, not over runs."""
    shares: list[float] = np.mean([[float(digit) for digit in each["result"]["passed"]] for each in records],
                                  axis=0).tolist()
    return shares


def mean_of(records: Sequence[Record], *path: str) -> float:
    """Mean of a number, or of a list of numbers, that each record holds at `path`."""
    values = []
    for each in records:
        value: Any = each
        for key in path:
            value = value[key]
        values.append(np.mean(value))
    return float(np.mean(values))


def tables(records: Sequence[Record]) -> list[str]:
    """Per task: who ran by its recipe; then who needs more than the machine had, and what broke."""
    lines: list[str] = []
    for task, peers in groups_of(records).items():
        some = next(iter(peers.values()))[0]
        ran = {peer: rows for peer, rows in peers.items() if not rows[0]["needs"]}
        rest = {peer: rows for peer, rows in peers.items() if rows[0]["needs"]}
        lines += [f"### {task}", "", caption(task, peers, some), "",
                  "| peer | all checks (95 %) | reward | TFLOP | editor calls | wall s | what is left at the end |",
                  "| --- | --- | --- | --- | --- | --- | --- |",
                  *(line_of(peer, rows) for peer, rows in sorted(ran.items(), key=lambda each: -score(each[1])))]
        if rest:
            lines += ["", "These want more than this machine has. What they did with what is here is not their score.",
                      "", "| peer | needs | ran with what is here | all checks | reward | TFLOP | editor calls | "
                      "what is left at the end |", "| --- | --- | --- | --- | --- | --- | --- | --- |",
                      *(needy_line(peer, rows) for peer, rows in rest.items())]
        breaks = [(peer, each) for peer, rows in peers.items() for each in rows[0]["breaks"]]
        if breaks:
            lines += ["", "What broke, as recorded by the program:", "", "| peer | where | message |",
                      "| --- | --- | --- |",
                      *(f"| {peer} | {cell(each['where'])} | {cell(each['message'])} |" for peer, each in breaks)]
        lines.append("")
    return lines


def caption(task: str, peers: Mapping[str, Sequence[Record]], some: Record) -> str:
    everyone = [each for rows in peers.values() for each in rows]
    machines = sorted({each["machine"]["processor"] for each in everyone if each["machine"]})
    dates = sorted({each["date"] for each in everyone})
    seeds = sorted({each["seed"] for each in everyone})
    return (f"Planted: {some['planted']}. Cap {some['cap_tflop']:g} TFLOP, {len(some['result']['passed'])} test "
            f"questions, seeds {', '.join(map(str, seeds))}. `{COMMAND}`, {dates[0]}"
            f"{' to ' + dates[-1] if dates[-1] != dates[0] else ''}, {', '.join(machines)}, one thread.")


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def score(records: Sequence[Record]) -> float:
    return float(np.mean(questions(records)))


def line_of(peer: str, records: Sequence[Record]) -> str:
    low, high = bootstrap_interval(questions(records))
    return (f"| {peer} | {score(records):.2f} [{low:.2f}, {high:.2f}] | {mean_of(records, 'result', 'rewards'):.3f} | "
            f"{mean_of(records, 'cost', 'tflop'):.1f} | {mean_of(records, 'cost', 'editor_calls'):.0f} | "
            f"{mean_of(records, 'wall_s'):.0f} | {cell(records[0]['left_with'])} |")


def needy_line(peer: str, records: Sequence[Record]) -> str:
    return (f"| {peer} | {cell(records[0]['needs'])} | {'broke' if records[0]['breaks'] else 'to its end'} | "
            f"({score(records):.2f}) | ({mean_of(records, 'result', 'rewards'):.3f}) | "
            f"{mean_of(records, 'cost', 'tflop'):.1f} | {mean_of(records, 'cost', 'editor_calls'):.0f} | "
            f"{cell(records[0]['left_with'])} |")


def figures(records: Sequence[Record]) -> list[Figure]:
    """Scores of all that ran by its recipe, and the compute of everyone, which must stay under the task's cap."""
    found = []
    for task, peers in groups_of(records).items():
        scored = {peer: rows for peer, rows in peers.items() if not rows[0]["needs"]}
        found += [figure(f"{task}: {peer}, all checks", score(rows)) for peer, rows in scored.items()]
        others = [peer for peer in scored if peer not in (OURS, UNTOUCHED)]
        if OURS in scored and others:
            best = max(others, key=lambda peer: score(scored[peer]))
            found.append(figure(f"{task}: {OURS} less the best peer ({best})",
                                score(scored[OURS]) - score(scored[best])))
        found += [figure(f"{task}: {peer}, most compute", max(each["cost"]["tflop"] for each in rows), "TFLOP",
                         at_most=rows[0]["cap_tflop"]) for peer, rows in peers.items()]
    return found


def publish_all(records: Sequence[Record], table: Path) -> bool:
    """Write the Markdown and the JSON, print the figures; returns whether everyone stayed under its cap."""
    if not records:
        print("Nothing is on record yet.")
        return False
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(tables(records)), encoding="utf-8")
    print(table.read_text(encoding="utf-8"))
    return publish("peers", figures(records), "the peers, each by its own recipe, at the same compute",
                   rows=[dict(each) for each in records])
