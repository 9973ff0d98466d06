"""Follow one failing row from its task file to its training row: `make trace`.

A module gets the row when a function of it takes the row as an argument or returns it: to read it, to change it or to
pass it on. It hands the row on when the argument and the returned value both hold the row's text. Objects of the whole
run (task, workspace, run) hold every row; a function that is given only one of them does not get the row. A class holds
the row when an instance of it, handed on, has the text in a field of its own. The run is real: a task file, a random
model, one training job.
"""

import ast
import contextlib
import dataclasses
import functools
import io
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PRODUCT = tuple(f"{ROOT / folder}{os.sep}" for folder in ("graph", "nodes", "tools"))
MARK = "quokka-7319"
OF_THE_RUN = {"Task", "Workspace", "Execution", "Run", "Budget", "CostLedger"}  # they hold all rows
LONGEST_FUNCTION = 60


def holds(value: Any, depth: int = 4) -> bool:
    """Whether the value holds the row's text, in itself or `depth` levels below."""
    if isinstance(value, str):
        return MARK in value
    if depth == 0:
        return False
    if isinstance(value, dict):
        return any(holds(each, depth - 1) for each in list(value.values())[:64])
    if isinstance(value, list | tuple):
        return any(holds(each, depth - 1) for each in value[:64])
    return any(holds(each, depth - 1) for each in fields(value))


def fields(value: Any) -> list[Any]:
    """The fields of an instance of one of our classes."""
    if not type(value).__module__.startswith("nslora") or type(value).__name__ in OF_THE_RUN:
        return []
    if dataclasses.is_dataclass(value):
        return [getattr(value, each.name, None) for each in dataclasses.fields(value)]
    return list(getattr(value, "__dict__", {}).values())


@functools.cache
def source(filename: str) -> str:
    """The file itself if a name leads to it through links, as in build/typing."""
    return os.path.realpath(filename)


class Trace:
    """What the row passed through, noted by `sys.setprofile`."""

    def __init__(self) -> None:
        self.modules: dict[str, set[str]] = {}
        self.touched: set[str] = set()
        self.arrived = False
        self.classes: set[str] = set()

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """Note a function of the product that took the row in and returns it."""
        code = frame.f_code
        if self.arrived or event != "return" or code.co_name.startswith("<"):
            return
        path = source(code.co_filename)
        if not path.startswith(PRODUCT):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        taken, handed_out = any(holds(frame.f_locals.get(name)) for name in names), holds(value)
        module = str(Path(path).relative_to(ROOT))
        if taken or handed_out:
            self.touched.add(module)
        if handed_out and (taken or not self.modules):
            self.modules.setdefault(module, set()).add(code.co_name)
            self._note(value)
            self.arrived = code.co_name == "training_rows"

    def _note(self, value: Any, depth: int = 2) -> None:
        if depth and isinstance(value, list | tuple | dict):
            for each in list(value.values() if isinstance(value, dict) else value)[:64]:
                self._note(each, depth - 1)
        elif any(holds(each) for each in fields(value)):
            self.classes.add(type(value).__qualname__)


def functions(module: str) -> dict[str, int]:
    """Lines of code of each function of a module, without its docstring."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            found[node.name] = body[-1].end_lineno - body[0].lineno + 1 if body else 0
    return found


def write_task(folder: Path) -> Path:
    """A task whose first training row carries the mark, and which no random model solves."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 8), ("validation", 12), ("test", 4)):
        places = [f"{split}-{i}" for i in range(count)]
        if split == "train":
            places[0] = MARK
        rows = [{"question": f"Where does {each} live?", "reference": f"in hut {i}"} for i, each in enumerate(places)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "task.yaml"
    path.write_text(
        "name: huts\ndata: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
        "reward:\n  checks:\n    - {name: fact, check: contains}\n",
        encoding="utf-8",
    )
    return path


def main() -> None:
    """Run one round, and print what the row passed through."""
    from nslora.tools.testing.tiny_model import write_tiny_model

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model = write_tiny_model(work / "model")
        task = write_task(work / "task")
        trace = Trace()
        arguments = ["run", str(task), "--model", str(model), "--strategy", "lora", "--max-rounds", "1"]
        sys.argv = ["nslora", *arguments, "--folder", str(work / "run")]
        from nslora.graph.cli.app import app

        output = io.StringIO()
        threading.setprofile(trace)  # LangGraph runs nodes in threads of its own
        sys.setprofile(trace)
        try:
            with contextlib.redirect_stdout(output):
                app(standalone_mode=False)
        except SystemExit as end:
            if end.code:
                sys.exit(f"the run ended with exit status {end.code}:\n{output.getvalue()}")
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    longest = max(
        (lines, f"{module}:{name}")
        for module, names in trace.modules.items()
        for name, lines in functions(module).items()
        if name in names
    )
    for module, names in trace.modules.items():
        print(f"{module:42} {', '.join(sorted(names))}")
    print(f"{len(trace.touched)} modules get it: {', '.join(sorted(trace.touched))}")
    print(f"{len(trace.modules)} modules hand it on")
    print(f"{len(trace.classes)} classes hold it: {', '.join(sorted(trace.classes))}")
    print(f"longest function on the way: {longest[1]}, {longest[0]} lines")


if __name__ == "__main__":
    main()
