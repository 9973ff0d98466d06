"""Tables and the figure of bench_decisions, from the records alone: from which states which kind brings more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import learnt_router
import numpy as np
from probe_tables import stopping, variance

from nslora.router import Evaluation, Node, RouterDecision, Tree, evaluate, held_out, held_out_fit, lead, strategy_named
from nslora.tools.router.expected_gain import StrategySettings
from nslora.tools.router.strategies import WITH_SIGNAL
from nslora.tools.router.trees import REACH, TIE, Choice, Estimate, Walk, oracle, value_at, walk, walk_along
from nslora.tools.schema import KINDS, Kind

STRATEGIES = (
    "neurosymbolic",
    WITH_SIGNAL,
    "neurosymbolic-without-classifier",
    "lora",
    "textgrad",
    "textgrad -> lora",
    "lora -> textgrad",
)
ROUTER = strategy_named("neurosymbolic")


def references_count(node: Node) -> RouterDecision:
    """The router, with weights needed in full where every train reference earns full reward as it stands."""
    given = node.input
    if given.need is not None and node.knows["references_full"] == 1.0:
        given = replace(given, need=replace(given.need, p_content=1.0))
    return ROUTER.choose(given)


def bounds_per_token(node: Node) -> str:
    """The kind whose bound promises most reward for its tokens; the end where neither promises a thing."""
    given, bounds = node.input, dict(node.knows["bounds"])
    if node.knows["references_full"] == 1.0:
        bounds["lora"] = 1.0
    worth = {
        kind: (bounds[kind] - given.validation_reward)
        * given.progress[kind].value
        * (not given.progress[kind].saturated)
        for kind in KINDS
    }
    best = max(KINDS, key=lambda kind: worth[kind] / given.cost_tokens[kind] ** 0.25)
    return best if worth[best] > 0 else "finish"


# Candidates for the router, of which none is its default: they stay here until held-out trees speak for one.
FORMULAS: Mapping[str, Choice] = {
    "neurosymbolic": ROUTER,
    "any number of tries from the start": strategy_named(
        "neurosymbolic", settings=StrategySettings(tries_from_start=None)
    ),
    "references in full count for weights": references_count,
    "bounds per token": bounds_per_token,
}
LEARNT = "logistic regression, fitted to the other tasks"
SIDES: Mapping[str, str] = {"prompt only": "textgrad", "weights only": "lora", "the loop": "neurosymbolic"}
FEATURES: Mapping[str, str] = {
    "content share": "p_content",
    "bound of weights": "the reward if every failure got its right content",
    "bound of edits": "the reward if every failure got its best form",
    "reward": "on validation",
    "references full": "share of train references that earn full reward",
    "updates so far": "on this path",
}
DEEP = 2  # in a tree of one update each, a strategy that needs two would end after its first
SHARES = (0.25, 0.5, 0.75, 1.0)  # of a tree's largest budget
SEVERAL, STATES = 4, 20  # tasks and states that a shallow tree is fitted on


@dataclass(frozen=True)
class Fork:
    """A node with both updates on record. gains: of the update's own candidate over what was kept; 0 if it failed."""

    tree: Tree
    node: Node
    gains: Mapping[Kind, float]
    kept: Mapping[Kind, bool]
    tflop: Mapping[Kind, float]

    @property
    def features(self) -> list[float]:
        """`FEATURES`, in their order."""
        given, knows = self.node.input, self.node.knows
        return [
            given.need.p_content if given.need else 0.5,
            knows["bounds"]["lora"],
            knows["bounds"]["textgrad"],
            given.validation_reward,
            knows["references_full"] or 0.0,
            float(len(self.node.path)),
        ]

    @property
    def better(self) -> Kind | None:
        """The kind that brought more; None if neither was kept, or both brought the same."""
        worth = {kind: self.gains[kind] if self.kept[kind] else 0.0 for kind in KINDS}
        if abs(worth["lora"] - worth["textgrad"]) < 1e-9:
            return None
        return max(KINDS, key=lambda kind: worth[kind])


def forks_of(trees: Sequence[Tree]) -> list[Fork]:
    """Every node with both updates on record."""
    found = []
    for tree in trees:
        for path, node in tree.nodes.items():
            below = {kind: tree.nodes.get((*path, kind)) for kind in KINDS}
            updates = {kind: each.update for kind, each in below.items() if each and each.update}
            if len(updates) < len(KINDS):
                continue
            gains: dict[Kind, float] = {
                kind: (each["reward_after"] or each["reward_before"]) - each["reward_before"]
                for kind, each in updates.items()
            }
            kept = {kind: bool(each["kept"]) for kind, each in updates.items()}
            found.append(Fork(tree, node, gains, kept, {kind: each["tflop"] for kind, each in updates.items()}))
    return found


def page(trees: Sequence[Tree], partial: Sequence[Tree]) -> list[str]:
    """All tables, as Markdown. What has not run is not in them. partial: with nodes below the last whole level."""
    deep = [tree for tree in trees if tree.depth >= DEEP]
    none = [f"No tree has run to a depth of {DEEP} yet."]
    return [
        *["### Which kind brings more", "", *why_and_when(forks_of(partial)), ""],
        *["### Does the order matter?", "", *orders(trees), ""],
        *["### Strategies on the recorded trees", "", *(strategies(deep, partial) if deep else none), ""],
        *["### Base, prompt only, weights only, the loop", "", *(sides(deep) if deep else none), ""],
        *["### Ending a training job early", "", *stopping(partial), ""],
        *["### Variance among prompts, and among replies", "", *variance(partial)],
    ]


def why_and_when(forks: Sequence[Fork]) -> list[str]:
    """What the first update of each kind brings, by task, and a shallow tree over all forks."""
    lines = [
        "| task | seed | base | content share | bound of weights | bound of edits | weights | TFLOP | edit | TFLOP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in forks:
        if each.node.path == ():
            share, weights, edits, reward, *_ = each.features
            cells = [each.tree.task, str(each.tree.seed), f"{reward:.3f}", f"{share:.2f}", f"{weights:.2f}"]
            cells += [f"{edits:.2f}"]
            for kind in KINDS:
                cells += [f"{each.gains[kind]:+.3f}{'' if each.kept[kind] else ' dropped'}", f"{each.tflop[kind]:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *shallow_tree(forks)]


def shallow_tree(forks: Sequence[Fork]) -> list[str]:
    """A decision tree of depth 2 over the forks at which one kind brought more; accuracy with one task left out."""
    from sklearn.tree import DecisionTreeClassifier, export_text

    told = [each for each in forks if each.better]
    tasks = [each.tree.task for each in told]
    ties = len(forks) - len(told)
    words = f"{len(forks)} states with both updates on record; at {ties} of them neither brought more than the other."
    if len(set(tasks)) < SEVERAL or len(told) < STATES or len({each.better for each in told}) < len(KINDS):
        return [f"{words} No tree is fitted: that takes {STATES} states of {SEVERAL} tasks and of both kinds."]
    x, y = np.array([each.features for each in told]), np.array([each.better for each in told])
    right, usual = [], []
    for task in dict.fromkeys(tasks):
        out = np.array([each == task for each in tasks])
        if len(set(y[~out])) > 1:
            fitted = DecisionTreeClassifier(max_depth=2, random_state=0).fit(x[~out], y[~out])
            right += list(fitted.predict(x[out]) == y[out])
            names, counts = np.unique(y[~out], return_counts=True)
            usual += list(y[out] == names[counts.argmax()])
    whole = DecisionTreeClassifier(max_depth=2, random_state=0).fit(x, y)
    return [
        f"{words} A tree of depth 2 names the better kind at {np.mean(right):.0%} of the states of a task that it was "
        f"not fitted on; always the more frequent kind does at {np.mean(usual):.0%}. Fitted on all:",
        "",
        "```",
        export_text(whole, feature_names=list(FEATURES)).rstrip(),
        "```",
    ]


def orders(trees: Sequence[Tree]) -> list[str]:
    """Both orders of one update of each kind, and twice the better kind; what a run would deliver on validation."""
    lines = [
        "| task | seed | weights, edit | edit, weights | twice weights | twice edits |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    wanted: list[tuple[Kind, ...]] = [("lora", "textgrad"), ("textgrad", "lora"), ("lora", "lora")]
    wanted += [("textgrad", "textgrad")]
    for tree in trees:
        if tree.depth >= 2:
            nodes = [tree.nodes.get(path) for path in wanted]
            cells = [f"{node.value['validation']:.3f}" if node else "–" for node in nodes]
            lines.append(f"| {tree.task} | {tree.seed} | {' | '.join(cells)} |")
    return [*lines, "", "A dash: the first update ended the tree, or the node has not run."]


def strategies(trees: Sequence[Tree], partial: Sequence[Tree]) -> list[str]:
    """Each strategy as a path through the trees. partial: all recorded updates, which a learnt model is fitted to."""
    choices: dict[str, Choice] = {name: name for name in STRATEGIES} | dict(FORMULAS)
    found = {name: evaluate(choice, trees) for name, choice in choices.items()}
    chosen, by_task = held_out(FORMULAS, trees)
    found["of the formulas, with one task left out"] = chosen
    tasks = {tree.task for tree in trees}
    if len(tasks) >= SEVERAL:

        def fit(others: Sequence[Tree]) -> Choice:
            left_out = tasks - {tree.task for tree in others}
            return learnt_router.fit([tree for tree in partial if tree.task not in left_out])

        found[LEARNT] = held_out_fit(fit, trees)
    first = found[STRATEGIES[0]]
    lines = [
        "| strategy | regret, validation | regret, test | over the best single order | over each task's best order | "
        "level with it | TFLOP |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_line(name, each) for name, each in found.items()),
        f"| chance | {first.chance['validation']:.3f} | {first.chance['test']:.3f} | | | | |",
    ]
    single = ", ".join(first.best_single) or "no update"
    cells = len({tree.cell for tree in trees})
    return [
        *lines,
        "",
        f"Regret: area below the oracle, in reward, over budgets up to {REACH:g} times the dearest node. "
        f"{len(trees)} trees of {cells} cells, those of at least {DEEP} updates; intervals draw cells and trees. "
        f"Best single order: {single}. Each task's best order is known only afterwards. "
        "No threshold was chosen on these trees. Chosen with one task left out: "
        + ", ".join(f"{name} ({task})" for task, name in by_task.items())
        + ".",
        "",
        "With the monitoring signal less without it, in area: "
        f"{words(lead(found[WITH_SIGNAL], first), '+')}. {learnt_words(found)}",
        "",
        *by_budget(trees, first),
    ]


def by_budget(trees: Sequence[Tree], router: Evaluation) -> list[str]:
    """Validation reward within shares of the largest budget: oracle, router, best orders, no update."""
    single = [walk_along(router.best_single, tree) for tree in trees]
    own = [walk_along(router.best_orders[tree.cell], tree) for tree in trees]
    ways = {
        "oracle": [oracle(tree) for tree in trees],
        STRATEGIES[0]: [each.nodes for each in router.walks],
        "best order of each task": [each.nodes for each in own],
        "best single order": [each.nodes for each in single],
        "no update": [[tree.nodes[()]] for tree in trees],
    }
    lines = [f"| validation reward at | {' | '.join(f'{share:.0%}' for share in SHARES)} |"]
    lines += ["| --- |" + " --- |" * len(SHARES)]
    for name, nodes in ways.items():
        values = [
            np.mean([value_at(each, share, "validation", tree) for each, tree in zip(nodes, trees, strict=True)])
            for share in SHARES
        ]
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return [*lines, "", "Shares of each tree's largest budget; mean over trees."]


def learnt_words(found: Mapping[str, Evaluation]) -> str:
    """What the learnt model brings on tasks that it was not fitted to, against the formula."""
    if LEARNT not in found:
        return f"No model is learnt: that takes trees of {SEVERAL} tasks."
    over = lead(found[LEARNT], found[STRATEGIES[0]])
    verdict = "better than the formula" if over[1] > 0 else "worse" if over[2] < 0 else "a null result"
    return (
        f"The learnt model ([`learnt_router.py`](learnt_router.py)) less the formula, in area on tasks that it was not "
        f"fitted to: {words(over, '+')}: {verdict}."
    )


def _line(name: str, found: Evaluation) -> str:
    tflop = np.mean([each.end.tflop for each in found.walks])
    regret, over = found.regret, [found.over_best_single["validation"], found.over_best_orders["validation"]]
    cells = (words(regret["validation"]), words(regret["test"]), *(words(each, "+") for each in over))
    return f"| {name} | {' | '.join(cells)} | {found.level:.0%} | {tflop:.1f} |"


def sides(trees: Sequence[Tree]) -> list[str]:
    """Reward on the test rows of what each side delivers, at the end of its path and over all budgets; its losses."""
    lines = [
        f"| model | task | seeds | base | {' | '.join(SIDES)} | TFLOP |",
        f"| --- | --- | --- | --- |{' --- |' * len(SIDES)} --- |",
    ]
    lost = []
    for cell in dict.fromkeys(tree.cell for tree in trees):
        of_cell = [tree for tree in trees if tree.cell == cell]
        base = np.mean([tree.nodes[()].value["test"] for tree in of_cell])
        walks = {name: [walk(strategy, tree) for tree in of_cell] for name, strategy in SIDES.items()}
        values = [
            f"{np.mean([each.end.value['test'] for each in of_side]):.3f} "
            f"({np.mean([each.area['test'] for each in of_side]):.3f})"
            for of_side in walks.values()
        ]
        spent = " / ".join(f"{np.mean([each.end.tflop for each in of_side]):.0f}" for of_side in walks.values())
        line = (of_cell[0].model, of_cell[0].task, str(len(of_cell)), f"{base:.3f}", *values, spent)
        lines.append(f"| {' | '.join(line)} |")
        *others, loop = walks.items()
        lost += [loss for name, found in others for loss in map(loss_against(name), loop[1], found) if loss]
    words_of_losses = ["", *lost] if lost else ["", "The loop is behind neither side in any tree."]
    return [
        *lines,
        "",
        "Mean reward on the test rows of what the path delivers at its end; in brackets over all budgets, so at equal "
        "compute.",
        *words_of_losses,
    ]


def loss_against(name: str) -> Callable[[Walk, Walk], str]:
    """A line on a tree in which the loop ends behind that side on test; "" if it does not."""

    def line(loop: Walk, side: Walk) -> str:
        behind = side.end.value["test"] - loop.end.value["test"]
        if behind <= TIE:
            return ""
        tree = loop.tree
        return (
            f"- {tree.task} ({tree.model}, seed {tree.seed}): {behind:.3f} behind {name}, "
            f"{_path(loop)} against {_path(side)}: {reason(loop, side)}"
        )

    return line


def reason(loop: Walk, side: Walk) -> str:
    """Why the loop ended behind, as far as the records tell."""
    if loop.end.value["validation"] >= side.end.value["validation"] - TIE:
        return "no worse on validation, less on test."
    same = next((i for i, (a, b) in enumerate(zip(loop.path, side.path, strict=False)) if a != b), None)
    if same is None and len(loop.path) < len(side.path):
        said = ROUTER.choose(replace(loop.end.input, rounds_left=1))
        return f"it ended where the other went on ({said.reason})"
    if same is None:
        return "it went on, and what it delivers fell."
    node = loop.tree.nodes[loop.path[:same]]
    return f"another update {same + 1}: {ROUTER.choose(replace(node.input, rounds_left=1)).reason}"


def _path(found: Walk) -> str:
    return ", ".join(found.path) or "no update"


def words(estimate: Estimate, sign: str = "") -> str:
    """0.012 [0.000, 0.030]."""
    mean, low, high = (format(each, f"{sign}.3f") for each in estimate)
    return f"{mean} [{low}, {high}]"


def draw(forks: Sequence[Fork], path: Path) -> None:
    """Plot what weights bring beyond an edit against the share of the missing reward that needs content."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "nslora", "font.size": 8})
    from matplotlib import pyplot

    drawing, panel = pyplot.subplots(figsize=(6, 3.6))
    tasks = list(dict.fromkeys(each.tree.task for each in forks))
    for task, colour in zip(tasks, [*pyplot.get_cmap("tab20").colors] * 2, strict=False):
        of_task = [each for each in forks if each.tree.task == task]
        points = [(each.features[0], each.gains["lora"] - each.gains["textgrad"]) for each in of_task]
        sizes = [60 if each.node.path == () else 18 for each in of_task]
        panel.scatter(*zip(*points, strict=True), s=sizes, color=colour, label=task, alpha=0.8, edgecolors="none")
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set(
        xlabel="share of the missing reward that needs content (large: the base; small: after updates)",
        ylabel="gain of weights less gain of an edit",
        xlim=(-0.05, 1.05),
    )
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)
