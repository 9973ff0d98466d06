"""Decision trees: every sequence of updates to a depth, by forks that share all that one of them computed.

A node is what a run holds after the updates of its path. Its record says what a router may know there (`router`: its
whole input; `knows`: further numbers), what the last update brought, and what the run would deliver.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from decision_probes import Probes, epochs_kept, probed

from nslora.graph.sweep.run_cell import prepare as prepare  # for the worker that forks for `grow`
from nslora.graph.sweep.run_cell import to_the_end
from nslora.tools.errors import RunError
from nslora.tools.files import read_jsonl
from nslora.tools.schema import KINDS

ROOT = Path(__file__).parents[2]
DIGITS = 5
TIE = 1e-9


def paths_to(depth: int) -> list[str]:
    """Every path of at most `depth` updates, shorter ones first; "" is the base."""
    return ["/".join(path) for length in range(depth + 1) for path in product(KINDS, repeat=length)]


def code_hash() -> str:
    """12 hex characters of the product's code."""
    found = hashlib.sha256()
    for path in sorted(each for folder in ("graph", "nodes", "tools") for each in (ROOT / folder).rglob("*.py")):
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


def grow(
    tree: str,
    path: str,
    source: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    probes: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """The record of one node, and of nothing if its parent is a leaf.

    Args:
        tree: Folder of the tree's runs; one that was interrupted goes on.
        path: Updates from the base, as "lora/textgrad".
        source: Of the task, as `options`: see `load_task`.
        settings: The arguments of `Run.create`.
        probes: Those of `Probes` that differ from its defaults.
    """
    with epochs_kept(Path(tree) / "epochs"):
        run = _run_of(Path(tree), path, source, options, settings)
    if run is None:
        return None
    parent = _opened(Path(tree), path.rpartition("/")[0]) if path else None
    node = node_of(run, parent)
    if parent:
        node["update"] |= rounded(probed(run, parent, Path(tree), Probes(**probes)))
    return node


def _folder(tree: Path, path: str) -> Path:
    return tree / "runs" / (path.replace("/", "-") or "base")


def _opened(tree: Path, path: str) -> Any:
    from nslora.graph.runs.run import Run

    return Run.open(_folder(tree, path))


def _run_of(tree: Path, path: str, source: str, options: dict[str, Any], settings: dict[str, Any]) -> Any:
    """The finished run of a node; None if an ancestor is a leaf. Makes what is missing of the way to it."""
    from nslora.graph.runs.copy_files import copy_records
    from nslora.graph.runs.run import Run
    from nslora.tools.tasks.task import load_task

    folder, (above, _, action) = _folder(tree, path), path.rpartition("/")
    parent = _run_of(tree, above, source, options, settings) if path else None
    if path and (parent is None or leaf(parent)):
        return None
    try:
        run = Run.open(folder)
    except RunError:  # nothing there, or half a fork
        shutil.rmtree(folder, ignore_errors=True)
        if parent is None:
            run = Run.create(folder, task=load_task(source, **options), **settings, max_rounds=0, check_editor=False)
        else:
            depth = path.count("/") + 1
            run = parent.fork(folder, at=depth, action=action, settings={"max_rounds": depth})
    pool = tree / "shared"
    pool.mkdir(exist_ok=True)
    if not (folder / "result" / "report.json").is_file():
        if any(pool.iterdir()):
            copy_records(pool, folder, editor=True, trained=True)
        to_the_end(run)
        copy_records(folder, pool, editor=True, trained=True)
    return run


def leaf(run: Any) -> str:
    """Why no update follows under any strategy; "" if one may."""
    stop = str(run.report()["stop"])
    return "" if stop.startswith("round limit") else stop


def node_of(run: Any, parent: Any) -> dict[str, Any]:
    """The record of a node. parent: the run that it was forked from; None for the base."""
    from nslora.nodes.classify import router_input_of
    from nslora.nodes.shared.rounds import choose_rows
    from nslora.tools.classifier.attribution import need_of

    state, report, workspace = run.state(), run.report(), run.workspace
    kept = state["kept_measured"]
    evaluation = workspace.evaluations.load(kept["key"])
    failed = evaluation.failed("validation")
    material, _ = choose_rows(state, kept, workspace)
    router_input = router_input_of(state, workspace, kept, need_of([each.attribution for each in failed]), material)
    spent = report["cost"]
    return rounded(
        {
            "leaf": leaf(run),
            "router": asdict(router_input),
            "knows": knowledge(workspace, state, evaluation),
            "update": update_of(run, parent) if parent else None,
            "candidate": dict(state["kept"]),
            "delivers": delivered(run, report),
            "spent": {
                "tflop": spent["tflop"],
                "editor_tokens": spent["editor_tokens"],
                "wall_s": state["wall_s"],
            },
            "code": code_hash(),
            "date": datetime.now(UTC).date().isoformat(),
        }
    )


def knowledge(workspace: Any, state: Mapping[str, Any], evaluation: Any) -> dict[str, Any]:
    """What a router may know beside its input.

    bounds: mean reward on validation if every failure got its best form (textgrad) or its right content (lora);
    lora's is 1 for references that earn full reward as they stand.
    """
    task, kept = workspace.task, state["kept_measured"]
    failed = {which: evaluation.failed(which) for which in ("validation", "train")}
    rows = len(evaluation.of("validation"))
    missing = {
        kind: sum(each.attribution.missing_reward * getattr(each.attribution, deficit) for each in failed["validation"])
        for kind, deficit in (("textgrad", "content_deficit"), ("lora", "form_deficit"))
    }
    full = [task.reward(row, row.reference).passed for row in task.train if row.reference]
    prompt = workspace.prompts.get(state["kept"]["prompt"])
    return {
        "bounds": {kind: 1.0 - value / rows for kind, value in missing.items()},
        "repairable": kept["potential"],
        "references_full": sum(full) / len(full) if full else None,
        "validation_rows": rows,
        "train_rows": len(task.train),
        "train_reward": kept["train_reward"],
        "checks": kept["checks"],
        "all_checks": kept["all_checks"],
        "reference_loss_nats": kept["loss_nats"],
        "prompt_tokens": workspace.prompt_tokens(prompt),
        "wrong_replies": {which: len({each.reply for each in found}) for which, found in failed.items()},
        "failures": {which: len(found) for which, found in failed.items()},
        "truncated": sum(each.truncated for each in failed["validation"]),
    }


def rewards_in(run: Any, key: str | None) -> dict[str, float]:
    """Reward on each validation row in an evaluation of the run; {} of None."""
    return (
        {} if key is None else {i: row.value for i, row in run.workspace.evaluations.load(key).of("validation").items()}
    )


def update_of(run: Any, parent: Any) -> dict[str, Any]:
    """What the last update of a node brought, kept or not; rows won and lost against what was kept before."""
    record = run.state()["rounds"][-1]
    before = rewards_in(parent, parent.state()["kept_measured"]["key"])
    after = rewards_in(run, record["evaluation"])
    names = (
        "action", "kept", "verdict", "error", "note", "candidate", "reward_before", "reward_after", "potential_before",
        "potential_after", "numbers", "wall_s", "trained_tokens", "generated_tokens", "editor", "epoch_losses_nats",
        "grad_norms", "new_rows",
    )  # fmt: skip
    return {
        **{name: record[name] for name in names},
        "won": sum(value > before[i] + TIE for i, value in after.items()),
        "lost": sum(value < before[i] - TIE for i, value in after.items()),
        "tflop": record["flop"] / 1e12,
    }


def delivered(run: Any, report: Mapping[str, Any]) -> dict[str, Any]:
    """Validation reward of what the run would end with, and its reward on each test row, in the task's order."""
    rows = read_jsonl(run.folder / "result" / "test.jsonl")
    return {
        "changed": report["result"] != report["start"],
        "validation": report["validation"]["result"]["reward"],
        "test": [row["reward"] for row in rows if row["candidate"] == "result"],
    }


def rounded(value: Any) -> Any:
    """The value with its numbers rounded, as JSON."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {str(name): rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value
