"""The result folder: adapter, prompt, remade data, decisions, and the report that accounts for them."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from nslora.tools.dataset.remade import read_rows
from nslora.tools.editor.call_log import CHECK, EditorLog
from nslora.tools.errors import ModelError
from nslora.tools.evaluation.paired_tests import KEEP_TEST, REWARDS, bootstrap_interval, mean
from nslora.tools.files import sha256_of_file, sha256_of_json, write_json, write_jsonl, write_text
from nslora.tools.inference.flops import TERA
from nslora.tools.prompt import difference
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded, Score, check_means
from nslora.tools.schema import answered
from nslora.tools.training.adapters import WEIGHTS
from nslora.tools.workspace.budget import spent_of
from nslora.tools.workspace.judges import judges_report
from nslora.tools.workspace.tables import DECISION_COLUMNS, decision_rows, test_rows, write_table
from nslora.tools.workspace.workspace import Workspace

LONG_PROMPT = 0.5  # share of a row from which on a report offers to train the prompt into the weights
PACKAGES = ("nslora", "torch", "transformers", "peft", "trl", "textgrad", "langgraph", "langchain-core")


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation cost. flop: model FLOPs by formula, cached or not; replies from the cache cost no tokens."""

    generated_tokens: int = 0
    cached_replies: int = 0
    flop: float = 0.0

    @classmethod
    def of(cls, measured: Mapping[str, Any] | None) -> Evaluated:
        """The cost of an evaluation by its summary in the state."""
        return cls(**{each.name: measured[each.name] for each in fields(cls)}) if measured else cls()

    def __add__(self, other: Evaluated) -> Evaluated:
        return Evaluated(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class RunFacts:
    """A finished run in plain values.

    Attributes:
        stop: Why the run ended.
        rounds: Records of the rounds.
        start: {"adapter": hash or None, "prompt": hash} of the start; final: of the result.
        validation: Validation reward of base and result; test: what `compare_on_test` found.
        wall_s: Seconds at work.
        start_evaluation: Key of the evaluation before the first round.
        start_cost: Cost of the evaluation before the first round; test_cost: of the test split, base and result.
        base: Graded replies of the start to the test split, in the order of its rows; result: of the final candidate.
    """

    stop: str
    rounds: Sequence[Mapping[str, Any]]
    start: Mapping[str, Any]
    final: Mapping[str, Any]
    validation: Mapping[str, Any]
    test: Mapping[str, Any]
    wall_s: float
    start_cost: Evaluated = Evaluated()
    test_cost: Evaluated = Evaluated()
    start_evaluation: str | None = None
    base: Sequence[Graded] = ()
    result: Sequence[Graded] = ()


def compare_on_test(base: Sequence[Graded], result: Sequence[Graded], reward: Reward) -> dict[str, Any]:
    """Base and result on the same questions. Intervals are 95 % bootstrap; the gain's is paired by question."""

    def numbers(graded: Sequence[Graded], passed: list[float]) -> dict[str, Any]:
        return {
            "all_checks": mean(passed),
            "interval": list(bootstrap_interval(passed, bounds=REWARDS)),
            "reward": mean([each.score.value for each in graded]),
            "checks": check_means([each.score.checks for each in graded]),
            **(
                {"labels": labels}
                if (labels := reward.label_numbers([each.example for each in graded], [each.reply for each in graded]))
                else {}
            ),
        }

    def gain(name: str, of: Callable[[Score], float]) -> dict[str, Any]:
        gains = [of(new.score) - of(old.score) for old, new in zip(base, result, strict=True)]
        return {name: mean(gains), "interval": list(bootstrap_interval(gains))}

    before, after = ([float(each.score.passed) for each in graded] for graded in (base, result))
    in_reward = gain("reward", lambda score: score.value)
    return {
        "questions": len(base),
        "base": numbers(base, before),
        "result": numbers(result, after),
        "gain": {
            **gain("all_checks", lambda score: float(score.passed)),
            "reward": in_reward["reward"],
            "reward_interval": in_reward["interval"],
        },
    }


def question_scores(candidate: str, graded: Sequence[Graded]) -> list[dict[str, Any]]:
    """Scores by test question. A hash identifies the question, so that no text of the test split is written."""
    return [
        {
            "candidate": candidate,
            "id": each.example.id,
            "question_sha256": sha256_of_json(each.example.asked)[:16],
            "reward": each.score.value,
            "passed": each.score.passed,
            "checks": dict(each.score.checks),
        }
        for each in graded
    ]


def write_result(workspace: Workspace, facts: RunFacts) -> Path:
    """Write the folder `result` whole or not at all: into a folder beside it, which is then renamed."""
    partial, final = workspace.folder / ".result.partial", workspace.folder / "result"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    start, prompt = (workspace.prompts.get(str(each["prompt"])) for each in (facts.start, facts.final))
    sha256 = None
    if adapter := facts.final["adapter"]:
        workspace.adapters.export(adapter, partial / "adapter")
        sha256 = sha256_of_file(partial / "adapter" / WEIGHTS)
    if save_template := getattr(workspace.policy, "save_template", None):
        save_template(partial / "tokenizer")
    write_text(partial / "prompt.md", prompt.render())
    write_jsonl(partial / "remade.jsonl", _remade_rows(workspace, as_text=(partial / "tokenizer").is_dir()))
    write_jsonl(partial / "decisions.jsonl", facts.rounds)
    write_table(partial / "decisions.csv", DECISION_COLUMNS, decision_rows(facts.rounds))
    scores = [*question_scores("base", facts.base), *question_scores("result", facts.result)]
    write_jsonl(partial / "test.jsonl", scores)
    write_table(partial / "test.csv", *test_rows(facts.base, facts.result, named="base"))
    report = {**_report(workspace, facts), "adapter_sha256": sha256, "prompt_diff": difference(start, prompt)}
    write_json(partial / "report.json", report)
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    return final


def _report(workspace: Workspace, facts: RunFacts) -> dict[str, Any]:
    """What a reader needs to know to understand and repeat the result."""
    task, settings = workspace.task, workspace.settings
    log = EditorLog(workspace.folder / "editor.jsonl")
    return {
        "task": {
            "name": task.name,
            "source": task.source,
            "options": dict(task.options),
            "hash": task.hash,
            "rows": {split: len(getattr(task, split)) for split in ("train", "validation", "test")},
        },
        "seed": settings.seed,
        "strategy": settings.strategy,
        "stop": facts.stop,
        "policy": workspace.policy.describe(),
        "editor": settings.editor,
        "start": dict(facts.start),
        "result": dict(facts.final),
        "test": dict(facts.test),
        "validation": {
            which: {**facts.validation[which], **_labels_on_validation(workspace, facts, candidate)}
            for which, candidate in (("base", facts.start), ("result", facts.final))
        },
        "test_looks": 1 + len(list(workspace.folder.glob("result.*"))),
        "overfit_gap": {name: _overfit_gap(facts, name) for name in ("base", "result")},
        "prompt_tokens": {
            which: workspace.prompt_tokens(workspace.prompts.get(str(candidate["prompt"])))
            for which, candidate in (("base", facts.start), ("result", facts.final))
        },
        "prompt_share": _prompt_share(workspace, facts),
        "keep_test": KEEP_TEST,
        "rounds": [dict(each) for each in facts.rounds],
        "cost": _costs(facts, sum(each.input_tokens + each.output_tokens for each in log.of(CHECK))),
        "editor_problems": log.problems(),
        **({"judges": judges} if (judges := judges_report(workspace)) else {}),
        "wall_s": round(facts.wall_s, 3),
        "peak_rss_mb": _peak_rss_mb(),
        "settings": settings.model_dump(mode="json"),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"system": platform.system(), "processor": platform.machine(), "python": platform.python_version()},
    }


def has_long_prompt(report: Mapping[str, Any]) -> bool:
    """Whether most of what a request of the result costs is its prompt; a report of an earlier version does not say."""
    return (report.get("prompt_share") or 0.0) >= LONG_PROMPT


def _labels_on_validation(workspace: Workspace, facts: RunFacts, candidate: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of `label` checks for a candidate; its evaluation has the text of failing replies alone."""
    keys = {sha256_of_json(each["candidate"]): each["evaluation"] for each in facts.rounds}
    key = facts.start_evaluation if candidate == facts.start else keys.get(sha256_of_json(candidate))
    if key is None:
        return {}
    found = workspace.evaluations.load(key)
    failed = {each.id: each.reply for each in found.failed("validation")}
    rows = workspace.task.validation
    labels = workspace.task.reward.label_numbers(rows, [failed.get(row.id, row.reference or "") for row in rows])
    return {"labels": labels} if labels else {}


def _prompt_share(workspace: Workspace, facts: RunFacts) -> float | None:
    """The prompt's share of the tokens of a test question with its reply, of the result; None if they are not known."""
    prompt = workspace.prompts.get(str(facts.final["prompt"]))
    try:
        counts = workspace.token_counts(
            [answered(prompt.dialogue(each.example), each.thinking + each.reply) for each in facts.result]
        )
    except ModelError:  # the model is gone, and they are not on record
        return None
    tokens = workspace.prompt_tokens(prompt)
    return None if tokens is None or not counts else tokens / mean(counts)


def _overfit_gap(facts: RunFacts, name: str) -> float | None:
    """Validation reward minus test reward, of base or result: what the choice by validation overestimates."""
    on_validation = facts.validation[name]["reward"]
    return None if on_validation is None else float(on_validation - facts.test[name]["reward"])


def _costs(facts: RunFacts, check_tokens: int) -> dict[str, float]:
    """Sums over the run, from the first evaluation to the test split.

    tflop is what `max_tflop` caps: the first evaluation and the rounds. test_tflop comes on top of it. check_tokens: of
    the call by which the editor was asked before the run.
    """
    rounds, start, test = facts.rounds, facts.start_cost, facts.test_cost
    spent = spent_of(rounds, 0.0, start.flop)
    return {
        "trained_tokens": spent.train_tokens,
        "generated_tokens": start.generated_tokens
        + sum(each["generated_tokens"] for each in rounds)
        + test.generated_tokens,
        "start_generated_tokens": start.generated_tokens,
        "test_generated_tokens": test.generated_tokens,
        "cached_replies": start.cached_replies
        + sum(each.get("cached_replies", 0) for each in rounds)
        + test.cached_replies,
        "start_tflop": start.flop / TERA,
        "tflop": spent.tflop,
        "test_tflop": test.flop / TERA,
        "editor_calls": spent.editor_calls,
        "editor_tokens": spent.editor_tokens + check_tokens,
        "editor_check_tokens": check_tokens,
        "editor_cost": spent.cost,
    }


def _remade_rows(workspace: Workspace, *, as_text: bool) -> list[dict[str, Any]]:
    """All remade data of the run, in TRL's prompt-completion format: of chat turns, or of text for a model that has no
    chat template.
    """
    rows = []
    for path in sorted(workspace.remade.glob("*.jsonl")):
        prompt = workspace.prompts.get(path.stem)
        rows += [row.as_trl(prompt, as_text=as_text) for row in read_rows(path)]
    return rows


def _peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
