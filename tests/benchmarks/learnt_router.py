"""A small learnt model in the router's place: will an update of this kind be kept? Two logistic regressions.

    strategy="learnt_router:choose"     (a run with the coefficients of records/router.json, this folder on the path)

The kind of larger probability goes next, weighed by its cost as the formula weighs it. Which kinds are open, and when a
run ends, is left to the router's own rules: so the two differ in one thing. `bench_decisions.py --table` scores it with
one task left out, and writes the coefficients that all trees give.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from nslora.router import Node, RouterInput, Tree
from nslora.tools.files import write_text
from nslora.tools.router.expected_gain import DEFAULTS, affordability, best_of
from nslora.tools.router.inputs import open_kinds
from nslora.tools.router.strategies import Neurosymbolic
from nslora.tools.schema import KINDS, Kind

FILE = Path(__file__).parent / "records" / "router.json"
FEATURES = ("content share", "reward", "remade rows wait", "updates", "own drops", "other kind kept")
C = 10.0  # inverse of the L2 penalty: features of 0 to 1 have a small variance, and 1.0 would leave them no weight
FORMULA = Neurosymbolic()


def features(given: RouterInput, kind: Kind) -> list[float]:
    """`FEATURES`, in their order; each about 0 to 1."""
    own = [update for update in given.history if update.kind == kind]
    others = [update for update in given.history if update.kind != kind]
    return [
        given.need.p_content if given.need else 0.5,
        given.validation_reward,
        float(given.remade_waiting > 0),
        float(len(given.history)) / 3,
        float(sum(not update.kept for update in own)) / 2,
        float(any(update.kept for update in others)),
    ]


@dataclass(frozen=True)
class Learnt:
    """Coefficients by kind: the intercept, then one for each of `FEATURES`."""

    coefficients: Mapping[Kind, Sequence[float]]

    def probability(self, given: RouterInput, kind: Kind) -> float:
        """That an update of this kind will be kept."""
        intercept, *weights = self.coefficients[kind]
        found = intercept + sum(w * x for w, x in zip(weights, features(given, kind), strict=True))
        return 1 / (1 + math.exp(-found))

    def __call__(self, given: RouterInput | Node) -> str:
        """The next update; the end where the formula ends the run, or closes both kinds."""
        given = given.input if isinstance(given, Node) else given
        if FORMULA.choose(given).action == "finish":
            return "finish"
        seen, costs = FORMULA.seen(given), affordability(given)
        gains: dict[Kind, float] = {kind: self.probability(given, kind) * costs[kind] for kind in KINDS}
        return best_of(open_kinds(seen), gains, given, DEFAULTS.tie_share)


def fit(trees: Sequence[Tree]) -> Learnt:
    """Fit both regressions to every recorded update of these trees. A kind that always went one way gets its share."""
    from sklearn.linear_model import LogisticRegression

    coefficients: dict[Kind, list[float]] = {}
    for kind in KINDS:
        pairs = [
            (features(tree.nodes[path[:-1]].input, kind), bool(node.update["kept"]))
            for tree in trees
            for path, node in tree.nodes.items()
            if node.update and path[-1] == kind
        ]
        kept = [each for _, each in pairs]
        if len(set(kept)) < 2:
            share = (sum(kept) + 1) / (len(kept) + 2)
            coefficients[kind] = [math.log(share / (1 - share)), *[0.0] * len(FEATURES)]
            continue
        found = LogisticRegression(C=C).fit(np.array([each for each, _ in pairs]), np.array(kept))
        coefficients[kind] = [float(found.intercept_[0]), *map(float, found.coef_[0])]
    return Learnt(coefficients)


def write(model: Learnt, trees: Sequence[Tree], file: Path = FILE) -> None:
    """Write the coefficients, one line a kind, with what they were fitted to."""
    lines = {
        "fitted to": f"{sum(len(tree.nodes) - 1 for tree in trees)} updates of {len({t.task for t in trees})} tasks",
        "coefficients": ["intercept", *FEATURES],
        **{kind: [round(each, 4) for each in model.coefficients[kind]] for kind in KINDS},
    }
    body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in lines.items())
    write_text(file, f"{{\n{body}\n}}\n")


@cache
def read(file: Path = FILE) -> Learnt:
    """The coefficients of a file."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return Learnt({kind: found[kind] for kind in KINDS})


def choose(given: RouterInput) -> str:
    """A strategy of one's own for `Run.create`: the model in `FILE`."""
    return read()(given)
