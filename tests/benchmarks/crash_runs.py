"""Runs that are killed and resumed, in forked processes whose parent has imported everything."""

import gc
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash_points import Places, install

SETTINGS = {
    "strategy": "textgrad -> lora -> textgrad -> lora",
    "max_rounds": 3,
    "keep": {"level": 0.45},
    "lora": {"epochs": 3, "batch_size": 4, "learning_rate": 3e-2, "rank": 4, "top_blocks": 4},
    "device": {"threads": 1, "device": "cpu"},
    "approve": "edits",
}
NOT_COMPARED = ("wall_s", "note")  # note: a resumed training job has fewer steps, and may use other shortcuts


@dataclass
class Crash:
    """One kill: its place, and the differences to the uninterrupted run."""

    place: str
    number: int
    differences: list[str] = field(default_factory=list)
    calls_again: int = 0  # editor calls that were recorded before the kill and made again
    steps_again: int = 0  # training steps done twice, without the one in progress at the kill


def import_all() -> None:
    """Import what a run needs, so that forked children start at once. Creates no tensor.

    gc.freeze() excludes these objects from garbage collection: each training job runs two full collections.
    """
    import datasets  # noqa: F401
    import peft  # noqa: F401

    from nslora.tools.editor.textual_gradients import load_textgrad

    load_textgrad()  # imported bare, it writes a log folder
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    import nslora.graph.runs.run
    import nslora.tools.editor.rule_editor
    import nslora.tools.policies.local
    import nslora.tools.training.trainer  # noqa: F401

    gc.freeze()


def in_child(work: Callable[[], None], log: Path) -> int:
    """Run `work` in a forked process. Returns its status, as os.waitpid does."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return os.waitpid(pid, 0)[1]


ENGINES = {"launch": "torchrun --standalone --nproc_per_node 2", "shards": 2}


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """Serve the model over vLLM's routes in a forked process; yields its address."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 2)
            serve_until_killed(model, writing)
        finally:
            os._exit(1)
    try:
        os.close(writing)
        with os.fdopen(reading) as told:
            yield told.readline().strip()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def serve_until_killed(model: Path, writing: int) -> None:
    from vllm_server import serve_vllm

    from nslora.tools.policies.local import LocalPolicy
    from nslora.tools.policies.settings import DeviceSettings

    device = DeviceSettings(device="cpu", dtype="float32", threads=1)
    with serve_vllm(LocalPolicy.load(str(model), adapters=model / "adapters", device=device)) as server:
        os.write(writing, f"{server.url}\n".encode())
        os.close(writing)
        signal.pause()


def work_on(folder: Path, setting: Path, kill_at: int | None, *, traced: bool = True) -> None:
    """In a child: begin or continue the run in `folder`; kill this process at place number `kill_at`."""
    os.environ["NSLORA_CACHE"] = str(folder / "cache")
    from nslora.graph.runs.run import Run
    from nslora.tools.editor.rule_editor import RuleEditor
    from nslora.tools.tasks.task import load_task

    passed = Places(folder, kill_at)
    if traced:
        install(passed)

    class PaidEditor(RuleEditor):
        """The embedded editor; it records each call."""

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            from nslora.tools.editor.call_log import request_sha256

            passed.note("calls", request_sha256(messages))
            passed("editor: call under way")
            return super()._generate(messages, *args, **kwargs)

    task = load_task(setting / "task")
    if (folder / "run" / "run.json").is_file():
        run = Run.open(folder / "run", task=task, editor=PaidEditor())
    else:
        settings = {**SETTINGS, **json.loads((setting / "settings.json").read_text())}
        run = Run.create(folder / "run", task=task, model=str(setting / "model"), editor=PaidEditor(), **settings)
    for _ in run.stream():
        pass
    while run.question() is not None:
        for _ in run.stream(answer={"answer": "accept"}):
            pass


def uninterrupted(folder: Path, setting: Path) -> list[str]:
    """Do the uninterrupted run. Returns the places that it passes."""
    fresh(folder)
    if in_child(lambda: work_on(folder, setting, None), folder / "log"):
        raise RuntimeError(f"The uninterrupted run failed:\n{(folder / 'log').read_text()[-3000:]}")
    return (folder / "places").read_text().splitlines()


def crash(folder: Path, setting: Path, expected: dict[str, Any], place: str, number: int) -> Crash:
    """Kill a run at a place, resume it, and compare it with the uninterrupted run."""
    fresh(folder)
    found = Crash(place, number)
    status = in_child(lambda: work_on(folder, setting, number), folder / "log")
    if not os.WIFSIGNALED(status):
        found.differences.append(f"the process was not killed (status {status})")
    calls, steps = lines(folder / "calls"), lines(folder / "steps")
    recorded = {
        json.loads(line)["request_sha256"] for line in lines(folder / "run" / "editor.jsonl") if line.endswith("}")
    }
    if in_child(lambda: work_on(folder, setting, None), folder / "log"):
        found.differences.append(f"resume failed: {(folder / 'log').read_text()[-800:]}")
        return found
    again = lines(folder / "calls")[len(calls) :]
    found.calls_again = sum(call in recorded for call in again)
    under_way = {steps[-1]} if steps else set()
    found.steps_again = sum(step in steps and step not in under_way for step in lines(folder / "steps")[len(steps) :])
    found.differences += differences(expected, outcome(folder / "run"))
    return found


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal: the result with its hashes, every decision, and the cost."""
    report = json.loads((run / "result" / "report.json").read_text())
    rounds = [{key: value for key, value in each.items() if key not in NOT_COMPARED} for each in report["rounds"]]
    for each in rounds:
        each["editor"] = {key: value for key, value in each["editor"].items() if key != "seconds"}
    cost = {key: value for key, value in report["cost"].items() if not key.endswith(("_s", "seconds"))}
    return {
        "result": report["result"],
        "adapter": report["adapter_sha256"],
        "stop": report["stop"],
        "rounds": rounds,
        "spend": cost,
        "test": report["test"],
        "prompt": (run / "result" / "prompt.md").read_text(),
        "scores": (run / "result" / "test.jsonl").read_text(),
    }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    unlike = []
    for key in expected:
        if key == "rounds":
            for number, (a, b) in enumerate(zip(expected[key], found[key], strict=False), 1):
                unlike += [
                    f"round {number}: {name} was {a[name]!r}, is {b[name]!r}" for name in a if a[name] != b[name]
                ]
        elif expected[key] != found[key]:
            unlike.append(f"{key} was {expected[key]!r}, is {found[key]!r}"[:400])
    return unlike


def chosen(places: list[str], count: int, seed: int = 0) -> list[tuple[int, str]]:
    """`count` of the places: all kinds equally often, spread over the run."""
    kinds: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        kinds.setdefault(place, []).append(number)
    generator = random.Random(seed)
    for numbers in kinds.values():
        generator.shuffle(numbers)
    order = sorted(kinds)
    generator.shuffle(order)
    found: list[tuple[int, str]] = []
    while len(found) < min(count, len(places)):
        for kind in order:
            if kinds[kind] and len(found) < count:
                found.append((kinds[kind].pop(), kind))
    return sorted(found)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
