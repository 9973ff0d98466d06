"""What the probes of decision trees found: stopping inside a training job, and two variances of the reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nslora.router import Node, Tree
from nslora.tools.router.trees import estimate

PAIRS = 8  # that a finding takes


@dataclass(frozen=True)
class Stop:
    """A training job that the rule "end once the held-out loss has risen" would have cut short.

    Attributes:
        tree: Of the job.
        node: That the job made.
        gain: Reward of the weights before the rise, less that of the whole job, on the same validation rows.
        saved: Share of the job's epochs that the rule saves: it sees the rise one epoch later.
    """

    tree: Tree
    node: Node
    gain: float
    saved: float


def jobs_of(trees: Sequence[Tree]) -> list[tuple[Tree, Node, dict[str, Any]]]:
    """Every training job whose held-out losses are on record, each adapter once."""
    found = {}
    for tree in trees:
        for node in tree.nodes.values():
            update = node.update or {}
            if update.get("held_out"):
                candidate = update["candidate"]
                found[tree.cell, tree.seed, candidate["adapter"], candidate["prompt"]] = (tree, node, dict(update))
    return list(found.values())


def stops_of(trees: Sequence[Tree]) -> list[Stop]:
    """The jobs that would have been cut short, with the reward of either end."""
    stops = []
    for tree, node, update in jobs_of(trees):
        if stopped := update.get("stopped"):
            epochs = len(update["held_out"]["losses_nats"])
            gain = stopped["reward"] - stopped["reward_whole"]
            stops.append(Stop(tree, node, gain, 1 - (stopped["epoch"] + 1) / epochs))
    return stops


def stopping(trees: Sequence[Tree]) -> list[str]:
    """The rule against whole jobs, in pairs: same task, seed, start, rows and draws."""
    jobs, stops = jobs_of(trees), stops_of(trees)
    if len(stops) < PAIRS:
        every = sum(path[-1:] == ("lora",) for tree in trees for path in tree.nodes)
        return [
            f"{len(jobs)} training jobs with held-out losses are on record, of {every} nodes of weights; in "
            f"{len(stops)} of them the loss rises before the last epoch. A finding takes {PAIRS} such pairs."
        ]
    gain, low, high = estimate([each.tree for each in stops], [each.gain for each in stops])
    lines = [
        "| task | path | ends after | of epochs | reward there | of the whole job | won | lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in stops:
        update = each.node.update or {}
        found, epochs = update["stopped"], len(update["held_out"]["losses_nats"])
        cells = (each.tree.task, "/".join(each.node.path), found["epoch"], epochs)
        rest = (f"{found['reward']:.3f}", f"{found['reward_whole']:.3f}", found["won"], found["lost"])
        lines.append("| " + " | ".join(map(str, (*cells, *rest))) + " |")
    # "At no loss": an interval that reaches below 0 speaks against the rule, since it may cost reward.
    verdict = "it saves compute at no loss" if low >= 0 else "it costs reward" if high < 0 else "nothing is told"
    return [
        "Would a training job do better to end once the held-out loss has risen, with the weights before the rise? It "
        f"rises in {len(stops)} of {len(jobs)} recorded jobs. Reward on validation rows, less that of the whole job: "
        f"{gain:+.3f} [{low:+.3f}, {high:+.3f}], cells and jobs drawn; epochs saved: "
        f"{np.mean([each.saved for each in stops]):.0%} of these jobs. So {verdict}.",
        "",
        *lines,
    ]


def variance(trees: Sequence[Tree]) -> list[str]:
    """Variances of the reward beside what the edit brought."""
    lines = []
    for tree in trees:
        for node in tree.nodes.values():
            update = node.update or {}
            if found := update.get("variance"):
                gain = (update["reward_after"] or 0.0) - update["reward_before"]
                numbers = f"{found['among_prompts']:.4f} | {found['among_replies']:.4f}"
                lines.append(f"| {tree.task} | {'/'.join(node.path)} | {numbers} | {gain:+.3f} |")
    if not lines:
        return ["The variance of the reward among prompts and replies has not been measured (`--variance`)."]
    return [
        "| task | path | variance among prompts | among replies | gain of the edit |",
        "| --- | --- | --- | --- | --- |",
        *lines,
    ]
