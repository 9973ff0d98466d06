"""Speed of training and generation against the obvious alternatives.

    python tests/benchmarks/bench_speed.py [--device cpu] [--model NAME | --shape 1b|7b|tiny] [--repeats 3] [--only ...]

Each figure is a ratio of wall times. The sides alternate; reported are the median of the repeats' ratios, the smallest
and the largest. A shape is a Llama of that size with random weights in bfloat16: speed does not depend on the weights.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from form import Figure, figure, publish
from speed_demo import AT_WORK
from speed_evaluation import evaluation_figures
from speed_growth import adapter_figure, round_figures, row_figures
from speed_sides import SHAPES, load
from speed_training import training_figures

from nslora.tools.inference.weights import EMBEDDED_NAME, resolve_model
from nslora.tools.policies.environment import prepare_environment
from nslora.tools.tasks.task import load_task

PARTS = ("training", "evaluation", "rows", "adapters", "rounds", "demo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=EMBEDDED_NAME)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument(
        "--top-blocks", type=int, help="LoRA on the top N blocks (default: a third on a CPU, all on a GPU)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the benchmark")
    arguments = parser.parse_args()
    prepare_environment()
    task = load_task("handbook")
    rows = [*task.train, *task.validation, *task.test]
    figures: list[Figure] = []
    demo: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        works: dict[str, Callable[[], list[Figure]]] = {
            "training": lambda: training_figures(arguments, policy, rows),
            "evaluation": lambda: evaluation_figures(arguments, policy, rows),
            "rows": lambda: row_figures(arguments, policy, rows),
            "adapters": lambda: [adapter_figure(arguments, policy, rows)],
            "rounds": lambda: round_figures(task, arguments.repeats),
        }
        if set(arguments.only) - {"rounds", "demo"}:
            policy = load(arguments, Path(scratch))
        for part in (each for each in works if each in arguments.only):
            print(part, flush=True)
            found = works[part]()
            print("".join(f"  {each.name}: {each.value:.4g} {each.unit}\n" for each in found), flush=True)
            figures += found
    if "demo" in arguments.only and arguments.shape is None:
        print("demo", flush=True)
        demo = demo_seconds(arguments.model)
        figures += demo_figures(demo)
    holds = publish("speed", figures, device=arguments.device, model=arguments.shape or arguments.model, demo_s=demo)
    sys.exit(0 if holds else 1)


def demo_seconds(model: str) -> dict[str, float]:
    """Do a demo run in its own process, without cached replies. Returns its wall time and its parts, in seconds."""
    source = Path(resolve_model(model).location)
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        if model == EMBEDDED_NAME:  # converted once for all runs, so the conversion is not part of one
            (cache / "models").mkdir(parents=True)
            (cache / "models" / EMBEDDED_NAME).symlink_to(source)
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("speed_demo.py"), Path(scratch) / "run", "--model", model],
            env={**os.environ, "NSLORA_CACHE": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        wall_s = time.perf_counter() - started
        shutil.rmtree(cache, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(f"The demo run failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    parts["rest"] += wall_s - sum(parts.values())  # before the first line of the script, and after its last
    return {"wall": wall_s, **parts}


def demo_figures(seconds: dict[str, float]) -> list[Figure]:
    """The share of a demo run outside training, generation and scoring: in total, and without imports."""
    wall, work = seconds["wall"], sum(seconds.get(part, 0.0) for part in AT_WORK)
    imports = seconds.get("imports", 0.0)
    others = sorted(
        ((value, part) for part, value in seconds.items() if part not in (*AT_WORK, "wall", "imports")), reverse=True
    )
    return [
        figure("demo: wall time", wall, "s"),
        figure("demo: neither training nor generating", 100 * (wall - work) / wall, "%", at_most=2.0),
        figure(
            "demo: the same without imports of libraries",
            100 * (wall - work - imports) / (wall - imports),
            "%",
            at_most=2.0,
        ),
        figure("demo: imports of libraries", imports, "s"),
        *(figure(f"demo: {part}", value, "s") for value, part in others if value >= 0.05),
    ]


if __name__ == "__main__":
    main()
