"""The result folder: adapter, prompt, remade data, decisions, and the report that accounts for them."""

import importlib.metadata
import platform
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.tools.dataset.remade import read_rows
from nslora.tools.evaluation.paired_tests import KEEP_TEST, REWARDS, bootstrap_interval
from nslora.tools.files import sha256_of_file, sha256_of_json, write_json, write_jsonl, write_text
from nslora.tools.inference.flops import TERA
from nslora.tools.prompt import difference
from nslora.tools.rewards.score import Graded, check_means
from nslora.tools.training.adapters import WEIGHTS
from nslora.tools.workspace.workspace import Workspace

PACKAGES = ("nslora", "torch", "transformers", "peft", "trl", "textgrad", "langgraph", "langchain-core")


@dataclass(frozen=True)
class RunFacts:
    """What a finished run knows about itself, as plain values."""

    stop: str
    rounds: Sequence[Mapping[str, Any]]
    start: Mapping[str, Any]  # {"adapter": hash or None, "prompt": hash}
    final: Mapping[str, Any]
    validation: Mapping[str, Any]
    test: Mapping[str, Any]
    wall_s: float
    start_flop: float = 0.0  # model FLOPs of the evaluation before the first round
    scores: Sequence[Mapping[str, Any]] = ()  # one per candidate and question, for paired comparisons of runs


def compare_on_test(base: Sequence[Graded], result: Sequence[Graded]) -> dict[str, Any]:
    """Base and result on the same questions; intervals are 95 % bootstrap, the gain's paired by question."""

    def numbers(graded: Sequence[Graded]) -> dict[str, Any]:
        passed = [float(each.score.passed) for each in graded]
        return {
            "all_checks": sum(passed) / len(passed),
            "interval": list(bootstrap_interval(passed, bounds=REWARDS)),
            "reward": sum(each.score.value for each in graded) / len(graded),
            "checks": check_means([each.score.checks for each in graded]),
        }

    gains = [float(after.score.passed) - float(before.score.passed) for before, after in zip(base, result, strict=True)]
    return {
        "questions": len(base),
        "base": numbers(base),
        "result": numbers(result),
        "gain": {"all_checks": sum(gains) / len(gains), "interval": list(bootstrap_interval(gains))},
    }


def question_scores(candidate: str, graded: Sequence[Graded]) -> list[dict[str, Any]]:
    """Scores by question, without any text of the test split; its hash tells one question from another."""
    return [
        {
            "candidate": candidate,
            "id": each.example.id,
            "question_sha256": sha256_of_json(each.example.question)[:16],
            "reward": each.score.value,
            "passed": each.score.passed,
            "checks": dict(each.score.checks),
        }
        for each in graded
    ]


def write_result(workspace: Workspace, facts: RunFacts) -> Path:
    """Write `result/` as a whole: into a folder beside it, which is then renamed."""
    partial, final = workspace.folder / ".result.partial", workspace.folder / "result"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    prompt = workspace.prompts.get(str(facts.final["prompt"]))
    start = workspace.prompts.get(str(facts.start["prompt"]))
    adapter = facts.final["adapter"]
    if adapter:
        workspace.adapters.export(adapter, partial / "adapter")
    write_text(partial / "prompt.md", prompt.render())
    write_jsonl(partial / "remade.jsonl", remade_rows(workspace))
    write_jsonl(partial / "decisions.jsonl", facts.rounds)
    write_jsonl(partial / "test.jsonl", facts.scores)
    sha256 = sha256_of_file(partial / "adapter" / WEIGHTS) if adapter else None
    write_json(
        partial / "report.json",
        {**report(workspace, facts), "adapter_sha256": sha256, "prompt_diff": difference(start, prompt)},
    )
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    return final


def report(workspace: Workspace, facts: RunFacts) -> dict[str, Any]:
    """Everything that a reader needs to know how the result came about."""
    return {
        "task": {
            "name": workspace.task.name,
            "source": workspace.task.source,
            "options": dict(workspace.task.options),
            "hash": workspace.task.hash,
            "rows": {
                "train": len(workspace.task.train),
                "validation": len(workspace.task.validation),
                "test": len(workspace.task.test),
            },
        },
        "seed": workspace.settings.seed,
        "strategy": workspace.settings.strategy,
        "stop": facts.stop,
        "policy": workspace.policy.describe(),
        "editor": workspace.settings.editor,
        "start": dict(facts.start),
        "result": dict(facts.final),
        "test": dict(facts.test),
        "validation": dict(facts.validation),
        "test_looks": 1 + len(list(workspace.folder.glob("result.*"))),
        "overfit_gap": overfit_gap(facts),
        "keep_test": KEEP_TEST,
        "rounds": [dict(each) for each in facts.rounds],
        "cost": costs(facts.rounds, facts.start_flop),
        "wall_s": round(facts.wall_s, 3),
        "peak_rss_mb": peak_rss_mb(),
        "settings": workspace.settings.model_dump(mode="json"),
        "versions": versions(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "python": platform.python_version()},
    }


def overfit_gap(facts: RunFacts) -> dict[str, float | None]:
    """Validation reward less test reward, of base and result: what choosing by validation made look better."""

    def gap(name: str) -> float | None:
        chosen_by = facts.validation[name]["reward"]
        return None if chosen_by is None else float(chosen_by - facts.test[name]["reward"])

    return {name: gap(name) for name in ("base", "result")}


def costs(rounds: Sequence[Mapping[str, Any]], start_flop: float) -> dict[str, float]:
    """Sums over the rounds; model FLOPs also of the evaluation before them, the test split left out."""
    editor = [each["editor"] for each in rounds]
    return {
        "trained_tokens": sum(each["trained_tokens"] for each in rounds),
        "generated_tokens": sum(each["generated_tokens"] for each in rounds),
        "start_tflop": start_flop / TERA,
        "tflop": (start_flop + sum(each["flop"] for each in rounds)) / TERA,
        "editor_calls": sum(each.get("calls", 0) for each in editor),
        "editor_tokens": sum(each.get("input_tokens", 0) + each.get("output_tokens", 0) for each in editor),
        "editor_cost": sum(each.get("cost", 0.0) for each in editor),
    }


def remade_rows(workspace: Workspace) -> list[dict[str, Any]]:
    """All remade data of the run, in TRL's prompt-completion format."""
    rows = []
    for path in sorted(workspace.remade.glob("*.jsonl")):
        prompt = workspace.prompts.get(path.stem)
        rows += [row.as_trl(prompt) for row in read_rows(path)]
    return rows


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
