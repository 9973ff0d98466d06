"""Decision trees: every path once, leaves end them, and a killed tree goes on where it was."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import decision_tables
import pytest
from bench_decisions import RECORDS, Tree, decision_tasks, grow_all, on_record, readme_lines
from decision_tables import bounds_per_token, forks_of, references_count, shallow_tree, why_and_when
from decision_trees import grow, paths_to
from form import README, in_readme
from langgraph.runtime import RunControl
from tree_lines import line

from nslora import Task
from nslora.graph.sweep.jobs import Event, Job, LocalExecutor
from nslora.router import Node, read_trees
from nslora.tools.files import read_jsonl

TREE = Tree("SmolLM2-135M-Instruct", "rules", "form-only", 0)


class Pretended:
    """Every node ends with the same record, and "lora" is a leaf."""

    def run(self, groups: Sequence[Sequence[Job]], control: RunControl) -> Iterator[Event]:
        for job in [each for group in groups for each in group]:
            path = job.arguments["path"]
            if path.startswith("lora/"):
                yield Event(job, "finished", None)
            elif path == "textgrad/lora":
                yield Event(job, "failed", error="out of luck")
            else:
                yield Event(job, "finished", {"leaf": "target reached" if path == "lora" else ""})


def test_every_path_is_grown_once_and_what_lies_below_a_leaf_is_not(tmp_path: Path) -> None:
    records, task = tmp_path / "records.jsonl", decision_tasks(None)["form-only"]

    def jobs(depth: int) -> list[Job]:
        return TREE.jobs(task, depth, tmp_path, on_record(records).get(TREE, {}), {})

    assert [job.arguments["path"] for job in jobs(1)] == ["", "lora", "textgrad"]
    failed = grow_all({TREE: jobs(2)}, Pretended(), records, RunControl())
    assert failed == [f"{TREE.name} textgrad/lora: out of luck"]
    assert on_record(records) == {TREE: {"": "", "lora": "target reached", "textgrad": "", "textgrad/textgrad": ""}}
    assert [job.arguments["path"] for job in jobs(2)] == ["textgrad/lora"]
    assert len(paths_to(3)) == 15
    assert len(jobs(3)) == 5  # that one, and the four below the edit


def test_the_recorded_trees_can_be_read() -> None:
    for tree in read_trees(RECORDS, partial=True):
        for path, node in tree.nodes.items():
            assert len(node.input.history) == len(path)
            assert (node.update is None) == (path == ())
            assert not any((*path, kind) in tree.nodes for kind in ("lora", "textgrad") if node.leaf)


def test_a_state_with_both_updates_on_record_tells_which_brought_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gains count if they were kept; a tie tells nothing. A tree over states is fitted from four tasks on."""
    monkeypatch.setattr(decision_tables, "STATES", 4)

    def node(task: str, path: str, share: float, **update: Any) -> dict[str, Any]:
        given = line(task, path, 1 + len(path), 0.5)
        given["router"]["need"]["p_content"] = share
        given["knows"]["references_full"] = 1.0
        given["update"] = {"reward_before": 0.5, "tflop": 2.0, **update} if path else None
        return given

    rows = []
    for task, share, weights, edit in (
        ("a", 0.9, 0.8, 0.6), ("b", 0.8, 0.7, 0.6), ("c", 0.1, 0.6, 0.9), ("d", 0.2, 0.5, 0.7), ("e", 0.5, 0.9, None)
    ):  # fmt: skip
        rows += [
            node(task, "", share),
            node(task, "lora", share, reward_after=weights, kept=task != "e"),
            node(task, "textgrad", share, reward_after=edit, kept=edit is not None),
        ]
    forks = forks_of(read_trees(rows))
    assert [fork.better for fork in forks] == ["lora", "lora", "textgrad", "textgrad", None]
    assert forks[4].gains == pytest.approx({"lora": 0.4, "textgrad": 0.0})
    words = "\n".join(shallow_tree(forks))
    assert words.startswith("5 states with both updates on record; at 1 of them neither")
    # Left out, each task is told by the other three: its own kind is the rarer one there, so that the usual kind fails.
    assert "not fitted on; always the more frequent kind does at 0%" in words
    assert "at 100% of the states" in words
    assert "No tree is fitted" in shallow_tree(forks[:2])[0]
    assert any("+0.400 dropped" in each for each in why_and_when(forks))


def test_the_formulas_that_wait_for_trees_choose_as_they_say() -> None:
    def base(full: float, bounds: dict[str, float]) -> Node:
        given = line("a", "", 1, 0.5)
        given["knows"] = {"references_full": full, "bounds": bounds}
        (tree,) = read_trees([given, line("a", "lora", 2, 0.6), line("a", "textgrad", 2, 0.6)])
        return replace(tree.nodes[()], input=replace(tree.nodes[()].input, rounds_left=2))

    bounds = {"lora": 0.5, "textgrad": 0.9}
    assert [references_count(base(full, bounds)).action for full in (0.9, 1.0)] == ["textgrad", "lora"]
    # Edits: 0.4 for 100 tokens; weights: 0 or, with references in full, 0.5 for 1000.
    assert [bounds_per_token(base(full, bounds)) for full in (0.9, 1.0)] == ["textgrad", "textgrad"]
    assert bounds_per_token(base(1.0, {"lora": 0.5, "textgrad": 0.7})) == "lora"
    assert bounds_per_token(base(0.9, {"lora": 0.5, "textgrad": 0.5})) == "finish"


@pytest.mark.engines  # bootstraps
def test_the_readme_shows_the_recorded_trees() -> None:
    wanted = in_readme("bench-decisions", readme_lines(RECORDS))
    assert README.read_text(encoding="utf-8") == wanted, "run: bench_decisions.py --table"


@pytest.mark.engines  # three processes that import everything
def test_a_tree_that_is_killed_ends_as_if_it_had_not_been(
    own_cache: Path, keepers: Task, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {
        "model": str(tiny_folder()),
        "keep": {"level": 0.45},
        "lora": {"epochs": 2, "batch_size": 4, "learning_rate": 3e-2, "rank": 4, "top_blocks": 4},
        "device": {"device": "cpu", "threads": 1},
    }
    probes = {"held_out": 4, "stopped": 4, "variance": 2}

    def jobs(folder: str) -> list[Job]:
        given = {"tree": str(tmp_path / folder), "source": keepers.source, "options": {}, "settings": settings}
        given["probes"] = probes
        return [
            Job(path, "decision_trees:grow", {**given, "path": path}, tmp_path / "logs" / f"{i}.txt")
            for i, path in enumerate(paths_to(2))
        ]

    plain = [(job.name, job.function, dict(job.arguments), str(job.log)) for job in jobs("killed")]
    script = tmp_path / "grow.py"
    script.write_text(
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path; from nslora.graph.sweep.jobs import Job, LocalExecutor, RunControl\n"
        f"jobs = [Job(*given, Path(log)) for *given, log in {plain!r}]\n"
        "for _ in LocalExecutor(1).run([jobs], RunControl()): pass\n"
    )
    killed = subprocess.Popen([sys.executable, str(script)])
    while not (tmp_path / "killed" / "runs" / "lora" / "adapters").exists():  # in the middle of the first training job
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    records = tmp_path / "records.jsonl"
    grow_all({TREE: jobs("killed")}, LocalExecutor(1), records, RunControl())
    found = {row["path"]: row for row in read_jsonl(records)}
    assert sorted(found) == sorted(paths_to(2))
    assert len(read_trees(records)) == 1
    trained = read_jsonl(tmp_path / "killed" / "shared" / "bursts.jsonl")
    names = [each["request_sha256"] for each in trained]
    assert 1 <= len(names) == len(set(names)) <= 3  # an update of weights on each of three paths, the same one once
    for path in paths_to(1):
        alone = grow(str(tmp_path / "alone"), path, keepers.source, {}, settings, probes)
        assert alone is not None
        for name in ("router", "knows", "candidate", "delivers", "leaf"):
            assert found[path][name] == alone[name], (path, name)
        if alone["update"]:
            for name in ("kept", "reward_after", "tflop", "epoch_losses_nats", "won", "lost"):
                assert found[path]["update"][name] == alone["update"][name], (path, name)
            for name in ("held_out", "stopped", "variance"):
                here, there = found[path]["update"][name] or {}, alone["update"][name] or {}
                assert here.keys() == there.keys()
                assert all(here[key] == there[key] for key in here if key != "seconds"), (path, name)
    weights, edit = (found[path]["update"] for path in ("lora", "textgrad"))
    assert len(weights["held_out"]["losses_nats"]) == len(weights["epoch_losses_nats"]) == 2
    assert edit["variance"]["prompts"] >= 2
    assert weights["variance"] is edit["held_out"] is None
    assert not list((tmp_path / "killed" / "epochs").iterdir())
