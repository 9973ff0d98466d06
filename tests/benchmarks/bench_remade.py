"""Remade rows against plain references: LoRA on 10, 25 and 50 of each, under the same edited prompt.

    make bench-remade                 (half an hour on one core; an interrupted benchmark continues)

Both arms train a new adapter on the same questions, under the same prompt with demonstrations, for the same number of
steps. Only the replies differ: verified replies of the policy, given under the prompt with the reference as a hint, or
the plain references. References that were only put into a layout are left out. Each seed draws its own train rows and
trains its own adapters. The score is the share of replies that pass every check, on test questions (other wordings) of
the facts that were taught. Replies about one fact are not independent, so they are averaged over all seeds first:
intervals are 95 % bootstraps over facts, paired if two arms are compared. The mean of each seed is reported too.
"""

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from form import Figure, figure, publish

from nslora.tools.dataset.remade import LAYOUT, RemadeRow, remake
from nslora.tools.editor.editor import Editor
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.evaluation.paired_tests import REWARDS, bootstrap_interval
from nslora.tools.evaluation.rollouts import ask, grade
from nslora.tools.files import sha256_of_json, write_json
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policies.environment import prepare_environment
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded
from nslora.tools.tasks.task import Task, load_task
from nslora.tools.training.settings import LoraSettings

FOLDER = Path("build/bench/remade")
MODEL = "SmolLM2-135M-Instruct"
SIZES = (10, 25, 50)
ARMS = ("remade", "references")
STEPS = 48  # of 8 rows: enough to learn 24 facts from references (1.00 of the facts)
SEEDS = (0, 1, 2)
# Stated here, so that the figures stay comparable if the defaults change.
LORA: dict[str, Any] = {"learning_rate": 2e-3, "schedule": "linear", "batch_size": 8, "early_stop_patience": None}
EDITED_FROM = 8  # train rows whose base replies the rule editor sees
FORMS = {"remade": "remade rows", "references": "plain references"}


@dataclass(frozen=True)
class Bench:
    """The objects that both arms share."""

    policy: LocalPolicy
    cache: ReplyCache
    task: Task
    prompt: Prompt
    remade: dict[str, RemadeRow]

    def graded(self, adapter: str | None, taught: set[str]) -> list[Graded]:
        """The replies to the test questions of the taught facts."""
        rows = [row for row in self.task.test if row.fields["key"] in taught]
        replies = ask(
            self.policy,
            self.cache,
            self.prompt,
            [row.question for row in rows],
            adapter=adapter,
            max_new_tokens=self.task.max_new_tokens,
        )
        return grade(self.task.reward, rows, replies.texts)


def prepare() -> Bench:
    """Edit the prompt with the rule editor, from the base's failures; make the remade data under it."""
    prepare_environment()
    task = load_task("handbook")
    policy = LocalPolicy.load(MODEL, adapters=FOLDER / "adapters", lora=LoraSettings(**LORA), device=DeviceSettings())
    cache = ReplyCache(FOLDER / "replies.sqlite")
    rows = task.train[:EDITED_FROM]
    replies = ask(
        policy, cache, task.prompt, [row.question for row in rows], adapter=None, max_new_tokens=task.max_new_tokens
    )
    failures = [each for each in grade(task.reward, rows, replies.texts) if not each.score.passed]
    prompt = Editor(RuleEditor()).edit(task.prompt, failures).prompts[0]
    made = remake(policy, cache, task.reward, prompt, task.train, adapter=None, max_new_tokens=task.max_new_tokens)
    return Bench(policy, cache, task, prompt, {row.source: row for row in made.rows if row.adapter != LAYOUT})


@dataclass(frozen=True)
class Trained:
    """Replies of one arm and seed to the test questions of the facts that it was taught."""

    adapter: str
    seed: int
    graded: list[Graded]

    def by_fact(self, passed: Callable[[Graded], float]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for each in self.graded:
            found.setdefault(each.example.fields["key"], []).append(passed(each))
        return found


def all_checks(each: Graded) -> float:
    return float(each.score.passed)


def fact_means(runs: Sequence[Trained], passed: Callable[[Graded], float] = all_checks) -> dict[str, float]:
    """Share of passing replies per fact, over all seeds that taught it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for key, values in run.by_fact(passed).items():
            found.setdefault(key, []).extend(values)
    return {key: mean(values) for key, values in sorted(found.items())}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def trained(bench: Bench, arm: str, size: int, seed: int) -> Trained:
    """Train one arm on the rows that this seed draws, or read its adapter from an earlier benchmark."""
    examples = [row for row in bench.task.train if row.id in bench.remade]
    random.Random(seed).shuffle(examples)
    examples = examples[:size]
    rows = tuple(
        TrainingRow(
            tuple(bench.prompt.messages(row.question)),
            bench.remade[row.id].reply if arm == "remade" else row.reference or "",
            row.id,
            "remade" if arm == "remade" else "reference",
        )
        for row in examples
    )
    learnt = [[row.dialogue, row.completion] for row in rows]
    key = sha256_of_json([bench.policy.fingerprint, LORA, STEPS, seed, learnt])[:16]
    found = FOLDER / f"{arm}-{size}-{seed}-{key}.json"
    if not found.exists():
        epochs = math.ceil(STEPS * bench.policy.lora.batch_size / len(rows))
        result = bench.policy.train(TrainingJob(rows, epochs, seed, progress=FOLDER / "progress" / key))
        write_json(found, {"adapter": result.adapter, "steps": result.steps, "wall_s": round(result.wall_s, 1)})
        print(f"seed {seed}, {arm}, {len(rows)} rows: {result.steps} steps in {result.wall_s:.0f} s", flush=True)
    adapter = json.loads(found.read_text())["adapter"]
    return Trained(adapter, seed, bench.graded(adapter, {row.fields["key"] for row in examples}))


def described(arm: str, size: int, runs: Sequence[Trained]) -> tuple[list[Figure], dict[str, Any]]:
    """The figures of one arm at one size, and its entry in the JSON."""
    facts = fact_means(runs)
    low, high = bootstrap_interval(list(facts.values()), bounds=REWARDS)
    seeds = [mean([all_checks(each) for each in run.graded]) for run in runs]
    checks = {
        name: mean(list(fact_means(runs, lambda each, name=name: each.score.checks[name]).values()))
        for name in runs[0].graded[0].score.checks
    }
    shown = ", ".join(f"{value:.2f}" for value in seeds)
    figures = [
        figure(
            f"{size} {FORMS[arm]}: all checks [{low:.2f}, {high:.2f}], seeds {shown}",
            mean(list(facts.values())),
            "share",
        ),
        *(figure(f"{size} {FORMS[arm]}: {name} alone", value, "share") for name, value in checks.items()),
    ]
    record = {
        "arm": arm,
        "rows": size,
        "facts": len(facts),
        "replies": sum(len(run.graded) for run in runs),
        "all_checks": mean(list(facts.values())),
        "interval": [low, high],
        "checks": checks,
        "seeds": {
            run.seed: {"all_checks": value, "adapter": run.adapter} for run, value in zip(runs, seeds, strict=True)
        },
    }
    return figures, record


def main() -> int:
    """Measure and publish. Returns 1 if a goal is missed."""
    bench = prepare()
    figures = [figure("train rows with a verified reply", len(bench.remade) / len(bench.task.train), "share")]
    arms = []
    for size in SIZES:
        runs = {arm: [trained(bench, arm, size, seed) for seed in SEEDS] for arm in ARMS}
        for arm in ARMS:
            more, record = described(arm, size, runs[arm])
            figures += more
            arms.append(record)
        made, plain = fact_means(runs["remade"]), fact_means(runs["references"])
        gains = [made[key] - plain[key] for key in made]
        low, high = bootstrap_interval(gains)
        figures += [
            figure(f"{size} rows: gain of remade over references [{low:.2f}, {high:.2f}]", mean(gains), "share"),
            figure(f"{size} rows: low end of the gain's 95 % interval", low, "share", at_least=0.05),
        ]
    everything = {row.fields["key"] for row in bench.task.train}
    base = [all_checks(each) for each in bench.graded(None, everything)]
    figures.append(figure("no training, the same prompt: all checks", mean(base), "share"))
    seeds = ", ".join(map(str, SEEDS))
    title = f"LoRA on remade rows against plain references, {MODEL}, handbook, {STEPS} steps, seeds {seeds}"
    return 0 if publish("remade", figures, title, arms=arms, prompt=bench.prompt.render()) else 1


if __name__ == "__main__":
    sys.exit(main())
