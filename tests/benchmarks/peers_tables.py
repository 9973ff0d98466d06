"""Tables and figures of bench_peers, computed from the records alone."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from form import README, Figure, figure, in_readme, publish

from nslora.tools.evaluation.paired_tests import REWARDS, bootstrap_interval

Record = Mapping[str, Any]
OURS, UNTOUCHED = "nslora", "base"
COMMAND = "make bench-peers"
NOT_RUN = "–"


def groups_of(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """Records by task and peer, in their own order."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for each in records:
        groups.setdefault(each["task"], {}).setdefault(each["peer"], []).append(each)
    return groups


def questions(records: Sequence[Record]) -> list[float]:
    """Share of seeds in which each test reply passes every check. Intervals are over questions, not over runs."""
    shares: list[float] = np.mean(
        [[float(digit) for digit in each["result"]["passed"]] for each in records], axis=0
    ).tolist()
    return shares


def mean_of(records: Sequence[Record], *path: str) -> float:
    """Mean of the numbers, or lists of numbers, at `path` of each record."""
    values = []
    for each in records:
        value: Any = each
        for key in path:
            value = value[key]
        values.append(np.mean(value))
    return float(np.mean(values))


def tables(records: Sequence[Record]) -> list[str]:
    """Per task: peers that ran by their recipe, peers that lack something they need, and the errors."""
    lines: list[str] = []
    for task, peers in groups_of(records).items():
        some = next(iter(peers.values()))[0]
        ran = {peer: rows for peer, rows in peers.items() if not rows[0]["needs"]}
        rest = {peer: rows for peer, rows in peers.items() if rows[0]["needs"]}
        lines += [
            f"### {task}",
            "",
            caption(task, peers, some),
            "",
            "| peer | all checks (95 %) | reward | TFLOP | editor calls | wall s | what is left at the end |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(line_of(peer, rows) for peer, rows in sorted(ran.items(), key=lambda each: -score(each[1]))),
        ]
        if rest:
            lines += [
                "",
                "These want more than this machine has. What they did with what is here is not their score.",
                "",
                "| peer | needs | ran with what is here | all checks | reward | TFLOP | editor calls | "
                "what is left at the end |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
                *(needy_line(peer, rows) for peer, rows in rest.items()),
            ]
        breaks = [(peer, each) for peer, rows in peers.items() for each in rows[0]["breaks"]]
        if breaks:
            lines += [
                "",
                "What broke, as recorded by the program:",
                "",
                "| peer | where | message |",
                "| --- | --- | --- |",
                *(f"| {peer} | {cell(each['where'])} | {cell(each['message'])} |" for peer, each in breaks),
            ]
        lines.append("")
    return lines


def caption(task: str, peers: Mapping[str, Sequence[Record]], some: Record) -> str:
    everyone = [each for rows in peers.values() for each in rows]
    seeds = sorted({each["seed"] for each in everyone})
    return (
        f"Planted: {some['planted']}. Cap {some['cap_tflop']:g} TFLOP, {len(some['result']['passed'])} test "
        f"questions, seeds {', '.join(map(str, seeds))}. `{COMMAND}`, {period(everyone)}, {processors(everyone)}, "
        "one thread."
    )


def period(records: Sequence[Record]) -> str:
    dates = sorted({each["date"] for each in records})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def processors(records: Sequence[Record]) -> str:
    return " and ".join(sorted({each["machine"]["processor"] for each in records if each["machine"]}))


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def score(records: Sequence[Record]) -> float:
    return float(np.mean(questions(records)))


def line_of(peer: str, records: Sequence[Record]) -> str:
    low, high = bootstrap_interval(questions(records), bounds=REWARDS)
    return (
        f"| {peer} | {score(records):.2f} [{low:.2f}, {high:.2f}] | {mean_of(records, 'result', 'rewards'):.3f} | "
        f"{mean_of(records, 'cost', 'tflop'):.1f} | {mean_of(records, 'cost', 'editor_calls'):.0f} | "
        f"{mean_of(records, 'wall_s'):.0f} | {cell(records[0]['left_with'])} |"
    )


def needy_line(peer: str, records: Sequence[Record]) -> str:
    return (
        f"| {peer} | {cell(records[0]['needs'])} | {'broke' if records[0]['breaks'] else 'to its end'} | "
        f"({score(records):.2f}) | ({mean_of(records, 'result', 'rewards'):.3f}) | "
        f"{mean_of(records, 'cost', 'tflop'):.1f} | {mean_of(records, 'cost', 'editor_calls'):.0f} | "
        f"{cell(records[0]['left_with'])} |"
    )


def figures(records: Sequence[Record]) -> list[Figure]:
    """Scores of the peers that ran by their recipe; the compute of all peers, which must stay under the cap."""
    found = []
    for task, peers in groups_of(records).items():
        scored = {peer: rows for peer, rows in peers.items() if not rows[0]["needs"]}
        found += [figure(f"{task}: {peer}, all checks", score(rows)) for peer, rows in scored.items()]
        others = [peer for peer in scored if peer not in (OURS, UNTOUCHED)]
        if OURS in scored and others:
            best = max(others, key=lambda peer: score(scored[peer]))
            found.append(
                figure(f"{task}: {OURS} less the best peer ({best})", score(scored[OURS]) - score(scored[best]))
            )
        found += [
            figure(
                f"{task}: {peer}, most compute",
                max(each["cost"]["tflop"] for each in rows),
                "TFLOP",
                at_most=rows[0]["cap_tflop"],
            )
            for peer, rows in peers.items()
        ]
    return found


def readme_lines(records: Sequence[Record]) -> list[str]:
    """The block in README.md: every peer on every task, peers without a score in brackets."""
    groups = groups_of(records)
    everyone = sorted(
        dict.fromkeys(each["peer"] for each in records),
        key=lambda peer: (
            any(each["needs"] for each in records if each["peer"] == peer),
            peer != OURS,
            -float(np.mean([score(peers[peer]) for peers in groups.values() if peer in peers])),
            peer,
        ),
    )
    lines = [
        f"| peer | {' | '.join(groups)} | TFLOP | what is left at the end |",
        "| --- |" + " --- |" * len(groups) + " --- | --- |",
    ]
    for peer in everyone:
        own = [each for each in records if each["peer"] == peer]
        shown = [both(peers[peer]) if peer in peers else NOT_RUN for peers in groups.values()]
        lines.append(
            f"| {peer} | {' | '.join(shown)} | {mean_of(own, 'cost', 'tflop'):.1f} | "
            f"{cell('; or '.join(dict.fromkeys(each['left_with'] for each in own)))} |"
        )
    needs = {each["peer"]: each["needs"] for each in records if each["needs"]}
    broke = {each["peer"] for each in records if each["breaks"]}
    seeds = " and ".join(str(seed) for seed in sorted({each["seed"] for each in records}))
    return [
        *lines,
        "",
        "Share of test replies that pass every check / mean reward. TFLOP is the mean over the tasks that were "
        "run, of the same cap of "
        + ", ".join(sorted({f"{each['cap_tflop']:g}" for each in records}))
        + ". In brackets: with what a machine without network has, and no score, since it wants more: "
        + "; ".join(f"{peer}: {cell(what)}{' (it broke)' if peer in broke else ''}" for peer, what in needs.items())
        + f". {tried(records)}`{COMMAND}`, seed {seeds}, {period(records)}, one thread of {processors(records)}. "
        "Intervals, wall time and the messages of what broke: [peers.md](records/peers.md).",
    ]


def tried(records: Sequence[Record]) -> str:
    """A sentence: how many candidates of a recipe the compute allowed."""
    counts: dict[str, list[int]] = {}
    for each in records:
        if "candidates_tried" in each.get("settings", {}):
            counts.setdefault(each["peer"], []).append(each["settings"]["candidates_tried"])
    return "".join(
        f"{peer} tried {min(found)} to {max(found)} candidates in that compute. " for peer, found in counts.items()
    )


def both(records: Sequence[Record]) -> str:
    """All checks and reward of one peer on one task; in brackets if they are not a score."""
    text = f"{score(records):.2f} / {mean_of(records, 'result', 'rewards'):.2f}"
    return f"({text})" if records[0]["needs"] else text


def publish_all(records: Sequence[Record], table: Path, readme: bool) -> bool:
    """Write the Markdown and the JSON, print the figures. Returns whether every peer stayed under its cap.

    readme: also rewrite the block in README.md. False for records of another model.
    """
    if not records:
        print("Nothing is on record yet.")
        return False
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(tables(records)), encoding="utf-8")
    if readme:
        README.write_text(in_readme("bench-peers", readme_lines(records)), encoding="utf-8")
    print(table.read_text(encoding="utf-8"))
    return publish(
        "peers",
        figures(records),
        "nslora and its peers, each by its own recipe, at equal compute",
        rows=[dict(each) for each in records],
    )
