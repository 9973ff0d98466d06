"""The wall time of `nslora run handbook` by part, from the start of its process to its end.

    python tests/benchmarks/speed_demo.py FOLDER [--model NAME] [--max-rounds N]

Prints one JSON line: seconds by part; each second counts once. Training is the time between the first and the last step
of an SFTTrainer, with the states of the frozen trunk, but without snapshots and without creating the trainer.
Generating and scoring are the passes through the model, without the tokenizer and without loading the adapter.
"""

import argparse
import builtins
import functools
import importlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

AT_WORK = ("training", "generating", "scoring")
POLICY, SAVER = "nslora.tools.policies.local.LocalPolicy", "langgraph.checkpoint.sqlite.SqliteSaver"
PEFT = "nslora.tools.policies.peft_adapters.PeftAdapters"
PARTS = {
    "training": ("nslora.tools.training.trainer.train",),
    "generating": ("nslora.tools.inference.generation.generate_ids",),
    "scoring": ("nslora.tools.inference.likelihood.completion_losses",),
    "making trainers": ("nslora.tools.training.trainer.job_trainer",),
    "snapshots": ("nslora.tools.training.snapshots.Snapshots.after_step",),
    "loading the model": (f"{POLICY}.load",),
    "storing adapters": (f"{PEFT}.save",),
    "fetching adapters": (f"{PEFT}._load", f"{PEFT}.begin"),
    "rewards and classifier": (
        "nslora.tools.workspace.measuring.evaluation_of",
        "nslora.nodes.evaluate.attributed_anew",
    ),
    "checkpoints": (f"{SAVER}.put", f"{SAVER}.put_writes"),
}


class Parts:
    """A clock that counts each second for one part: the innermost running one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stack, self._since = ["rest"], time.perf_counter()
        self._owner: int | None = None  # the thread that is counted, until its outermost call ends
        self._lock = threading.Lock()

    def enter(self, part: str) -> None:
        self._tick()
        self._stack.append(part)

    def leave(self) -> None:
        self._tick()
        self._stack.pop()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def around(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, with its time counted as `part`.

        The graph's nodes run one at a time in their own threads, while the main thread waits. Calls of a second thread
        at the same time are not counted.
        """

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._may_count():
                return function(*args, **kwargs)
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()
                if len(self._stack) == 1:
                    self._owner = None

        return timed

    def _may_count(self) -> bool:
        thread = threading.current_thread()
        if thread.name.startswith("nslora-"):  # imports libraries while a node works
            return False
        with self._lock:
            self._owner = self._owner or thread.ident
            return self._owner == thread.ident

    def watch(self, name: str, part: str) -> None:
        """Count the time of the function or method with this dotted name."""
        owner_name, _, function_name = name.rpartition(".")
        module, _, cls = owner_name.rpartition(".") if owner_name.rpartition(".")[2][0].isupper() else ("", "", "")
        owner = getattr(importlib.import_module(module), cls) if module else importlib.import_module(owner_name)
        raw = vars(owner)[function_name]
        setattr(
            owner,
            function_name,
            classmethod(self.around(raw.__func__, part)) if isinstance(raw, classmethod) else self.around(raw, part),
        )

    def watch_imports(self) -> None:
        """Count the time inside import statements, the libraries' own included."""
        builtins.__import__ = self.around(builtins.__import__, "imports")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--max-rounds", type=int, default=6)
    arguments = parser.parse_args()
    parts = Parts()
    parts.watch_imports()
    from nslora.graph.cli import app as cli

    for part, names in PARTS.items():
        for name in names:
            parts.watch(name, part)
    cli.run("handbook", folder=arguments.folder, model=arguments.model, max_rounds=arguments.max_rounds, set_=[])
    parts.enter("rest")
    print(json.dumps(dict(parts.seconds)))


if __name__ == "__main__":
    main()
