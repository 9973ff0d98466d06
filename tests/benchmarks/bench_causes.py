"""Planted causes in whole runs: is the first action right, and does a model that needs no change stay unchanged?

Twenty runs with a cause (content, form, both) and twenty with none, for each of two models. If both are missing, either
kind of update may come first, but the run is right only if `both` is the classifier's most frequent verdict. With no
cause, a run is right if it ends with the model and prompt of its start; in half of these runs some validation rows fail
because their reference is wrong. Finished runs are in `build/bench/causes/results.jsonl` and are not run again.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causes_tasks import CAUSES, RIGHT, Cause, embedded_task, known_subjects, tiny_model, tiny_task
from form import Figure, figure, publish

from nslora.graph.runs.run import Run
from nslora.tools.files import append_jsonl, read_jsonl
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policies.environment import prepare_environment
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.training.settings import LoraSettings

FOLDER = Path("build/bench/causes")
RESULTS = FOLDER / "results.jsonl"
MODELS = ("embedded", "tiny")
VERDICTS = ("content", "form", "both")
PLANTED = 20  # runs with a cause, and as many without
SETTINGS: dict[str, dict[str, Any]] = {
    # Only the first action is judged; the rest of the run only has to end.
    "embedded": {"max_rounds": 1, "lora": {"epochs": 2}},
    "tiny": {"max_rounds": 2, "lora": {"epochs": 4}},
}


@dataclass(frozen=True)
class Outcome:
    """One run.

    first: the first action, or "none". verdict: the classifier's most frequent verdict before it. changed: whether the
    result differs from the start. reward: of the start, on validation.
    """

    model: str
    cause: Cause
    seed: int
    first: str
    verdict: str
    changed: bool
    reason: str
    reward: float

    @property
    def right(self) -> bool:
        if self.cause == "neither":
            return not self.changed
        return self.first in RIGHT[self.cause] and (self.cause != "both" or self.verdict == "both")


def plan(runs: int) -> list[tuple[Cause, int]]:
    """(cause, seed): the three causes in turn, then as many runs without a cause."""
    return [(CAUSES[i % 3], i) for i in range(runs)] + [("neither", i) for i in range(runs)]


def run(model: str, cause: Cause, seed: int, known: list[str]) -> Outcome:
    folder = FOLDER / f"run-{model}"
    shutil.rmtree(folder, ignore_errors=True)
    if model == "tiny":
        task, name = tiny_task(cause, seed), str(tiny_model(FOLDER / f"tiny-{seed}", seed))
    else:
        task, name = embedded_task(cause, seed, known), "SmolLM2-135M-Instruct"
    begun = Run.create(folder, task=task, model=name, seed=seed, device={"device": "cpu"}, **SETTINGS[model])
    report = begun.adapt().report
    rounds = report["rounds"]
    need = rounds[0]["demand"] if rounds else {}
    verdict = max(VERDICTS, key=lambda name: need[name]) if need else "none"
    return Outcome(
        model,
        cause,
        seed,
        rounds[0]["action"] if rounds else "none",
        verdict,
        report["result"] != report["start"],
        rounds[0]["reason"] if rounds else report["stop"],
        report["validation"]["base"]["reward"],
    )


def figures_of(outcomes: list[Outcome]) -> list[Figure]:
    figures: list[Figure] = []
    for model in MODELS:
        planted = [each for each in outcomes if each.model == model and each.cause != "neither"]
        none = [each for each in outcomes if each.model == model and each.cause == "neither"]
        for name, group in (("first action right", planted), ("neither: no change", none)):
            share = sum(each.right for each in group) / max(1, len(group))
            whole = len(group) >= PLANTED
            figures.append(figure(f"{model}, {name}, of {len(group)}", share, at_least=0.95 if whole else None))
        for cause in CAUSES[:3]:
            group = [each for each in planted if each.cause == cause]
            share = sum(each.right for each in group) / max(1, len(group))
            figures.append(figure(f"{model}, {cause}: first action right, of {len(group)}", share))
        failing = [each for each in none if each.first != "none"]
        share = sum(each.right for each in failing) / max(1, len(failing))
        figures.append(figure(f"{model}, neither: no change although rows fail, of {len(failing)}", share))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, help="only this model")
    parser.add_argument("--runs", type=int, default=PLANTED, help="runs with a cause, and as many without")
    options = parser.parse_args()
    prepare_environment()
    done = {(each["model"], each["cause"], each["seed"]) for each in read_jsonl(RESULTS)}
    for model in [options.model] if options.model else MODELS:
        todo = [each for each in plan(options.runs) if (model, *each) not in done]
        known: list[str] = []
        if model == "embedded" and todo:
            policy = LocalPolicy.load(
                "SmolLM2-135M-Instruct", adapters=FOLDER / "adapters", lora=LoraSettings(), device=DeviceSettings()
            )
            known = known_subjects(policy, ReplyCache(FOLDER / "replies.sqlite"))
            del policy
            print(f"the embedded model knows {len(known)} of the common facts in every wording", flush=True)
        for cause, seed in todo:
            outcome = run(model, cause, seed, known)
            append_jsonl(RESULTS, asdict(outcome))
            print(f"{model} {cause} {seed}: {outcome.first} ({outcome.reason})", flush=True)
    outcomes = [Outcome(**each) for each in read_jsonl(RESULTS)]
    wrong = [asdict(each) for each in outcomes if not each.right]
    good = publish("causes", figures_of(outcomes), "Planted causes in whole runs", wrong=wrong)
    print(json.dumps(wrong, indent=1) if wrong else "every run was right")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
