"""Are remade rows worth more than plain references? LoRA on 10, 25 and 50 of each, under the same edited prompt.

    make bench-remade                 (ten minutes on two idle cores; a run that was stopped goes on)

Both arms train on the same questions under the same prompt with demonstrations, from nothing, for the same number of
steps; only the replies differ: the verified ones that the policy gave under the prompt with the reference as a hint,
or the plain references. (References that were only put into a layout are left out.) Judged on test questions (other
wordings) of the facts that were taught: share of replies that pass every check. Intervals are 95 % bootstraps over
questions, paired where two arms are compared.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from form import figure, publish

from nslora.tools.editor import Editor
from nslora.tools.evaluation import ask, grade
from nslora.tools.files import sha256_of_json, write_json
from nslora.tools.local_policy import LocalPolicy, prepare_environment
from nslora.tools.policy import Burst, TrainingRow
from nslora.tools.prompt import Prompt
from nslora.tools.remake import LAYOUT, RemadeRow, remake
from nslora.tools.reply_cache import ReplyCache
from nslora.tools.rewards import Graded
from nslora.tools.rule_editor import RuleEditor
from nslora.tools.settings import DeviceSettings, LoraSettings
from nslora.tools.statistics import bootstrap_interval
from nslora.tools.task import Task, load_task

FOLDER = Path("build/bench/remade")
MODEL = "SmolLM2-135M-Instruct"
SIZES = (10, 25, 50)
ARMS = ("remade", "references")
STEPS = 48              # of 8 rows: enough to learn 24 facts from references (DESIGN: 1.00 of the facts)
SEED = 0
# Stated here, so that the figures stay comparable when the defaults move.
LORA: dict[str, Any] = {"learning_rate": 2e-3, "schedule": "linear", "batch_size": 8, "early_stop_patience": None}
EDITED_FROM = 8         # train rows whose base replies the rule editor is shown
FORMS = {"remade": "remade rows", "references": "plain references"}


@dataclass(frozen=True)
class Bench:
    """What both arms share."""

    policy: LocalPolicy
    cache: ReplyCache
    task: Task
    prompt: Prompt
    remade: dict[str, RemadeRow]

    def graded(self, adapter: str | None, taught: set[str]) -> list[Graded]:
        """The replies to the test questions of the taught facts."""
        rows = [row for row in self.task.test if row.fields["key"] in taught]
        replies = ask(self.policy, self.cache, self.prompt, [row.question for row in rows], adapter=adapter,
                      max_new_tokens=self.task.max_new_tokens)
        return grade(self.task.reward, rows, replies.texts)


def prepare() -> Bench:
    """The prompt that the rule editor makes of the base's failures, and the remade data under it."""
    prepare_environment()
    task = load_task("handbook")
    policy = LocalPolicy.load(MODEL, adapters=FOLDER / "adapters", lora=LoraSettings(**LORA), device=DeviceSettings())
    cache = ReplyCache(FOLDER / "replies.sqlite")
    rows = task.train[:EDITED_FROM]
    replies = ask(policy, cache, task.prompt, [row.question for row in rows], adapter=None,
                  max_new_tokens=task.max_new_tokens)
    failures = [each for each in grade(task.reward, rows, replies.texts) if not each.score.passed]
    prompt = Editor(RuleEditor()).edit(task.prompt, failures).prompts[0]
    made = remake(policy, cache, task.reward, prompt, task.train, adapter=None, max_new_tokens=task.max_new_tokens)
    return Bench(policy, cache, task, prompt, {row.source: row for row in made.rows if row.adapter != LAYOUT})


def trained(bench: Bench, arm: str, size: int) -> tuple[str, set[str]]:
    """The adapter of one arm, trained or found, and the keys of the facts that it was taught."""
    examples = [row for row in bench.task.train if row.id in bench.remade][:size]
    rows = tuple(TrainingRow(tuple(bench.prompt.messages(row.question)),
                             bench.remade[row.id].reply if arm == "remade" else row.reference or "", row.id,
                             "remade" if arm == "remade" else "reference") for row in examples)
    learnt = [[row.dialogue, row.completion] for row in rows]
    key = sha256_of_json([bench.policy.fingerprint, LORA, STEPS, SEED, learnt])[:16]
    found = FOLDER / f"{arm}-{size}-{key}.json"
    if not found.exists():
        epochs = math.ceil(STEPS * bench.policy.lora.batch_size / len(rows))
        result = bench.policy.train(Burst(rows, epochs, SEED, progress=FOLDER / "progress" / key))
        write_json(found, {"adapter": result.adapter, "steps": result.steps, "wall_s": round(result.wall_s, 1)})
        print(f"{arm}, {len(rows)} rows: {result.steps} steps in {result.wall_s:.0f} s", flush=True)
    return json.loads(found.read_text())["adapter"], {row.fields["key"] for row in examples}


def main() -> int:
    """Measure and publish; 1 where a goal is missed."""
    bench = prepare()
    figures = [figure("train rows with a verified reply", len(bench.remade) / len(bench.task.train), "share")]
    arms = []
    for size in SIZES:
        outcomes: dict[str, list[float]] = {}
        for arm in ARMS:
            adapter, taught = trained(bench, arm, size)
            graded = bench.graded(adapter, taught)
            outcomes[arm] = [float(each.score.passed) for each in graded]
            checks = {name: sum(each.score.checks[name] for each in graded) / len(graded)
                      for name in graded[0].score.checks}
            low, high = bootstrap_interval(outcomes[arm])
            mean = sum(outcomes[arm]) / len(outcomes[arm])
            arms.append({"arm": arm, "rows": size, "questions": len(outcomes[arm]), "all_checks": mean,
                         "checks": checks, "interval": [low, high], "adapter": adapter})
            figures.append(figure(f"{size} {FORMS[arm]}: all checks [{low:.2f}, {high:.2f}]", mean, "share"))
            figures += [figure(f"{size} {FORMS[arm]}: {name} alone", value, "share") for name, value in checks.items()]
        gains = [made - plain for made, plain in zip(*(outcomes[arm] for arm in ARMS), strict=True)]
        low, high = bootstrap_interval(gains)
        figures += [figure(f"{size} rows: gain of remade over references [{low:.2f}, {high:.2f}]",
                           sum(gains) / len(gains), "share"),
                    figure(f"{size} rows: low end of the gain's 95 % interval", low, "share", at_least=0.05)]
    everything = {row.fields["key"] for row in bench.task.train}
    base = [float(each.score.passed) for each in bench.graded(None, everything)]
    figures.append(figure("no training, the same prompt: all checks", sum(base) / len(base), "share"))
    title = f"LoRA on remade rows against plain references, {MODEL}, handbook, {STEPS} steps, seed {SEED}"
    return 0 if publish("remade", figures, title, arms=arms, prompt=bench.prompt.render()) else 1


if __name__ == "__main__":
    sys.exit(main())
