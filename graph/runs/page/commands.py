"""The commands by which a run can be had again."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from nslora.tools.files import quoted
from nslora.tools.workspace.settings import RunSettings

# Settings that have an option of their own.
OPTIONS = (
    *("model", "adapter", "thinking", "editor", "strategy", "seed", "max_rounds", "max_seconds", "max_train_tokens"),
    *("max_tflop", "approve"),
)
OPTION = {name: f"--{name.replace('_', '-')}" for name in OPTIONS} | {
    "editor_base_url": "--base-url",
    **{f"editing.{name}": f"--{name.replace('max_', 'max-editor-')}" for name in ("max_calls", "max_tokens")},
    "editing.max_cost": "--max-cost",
}


class Command(NamedTuple):
    """What for, and the line."""

    title: str
    line: str


def commands_of(
    folder: Path, record: Mapping[str, Any], rounds: int, *, finished: bool, long_prompt: bool = False
) -> list[Command]:
    """The commands for a run. record: its `run.json`. rounds: how many have ended."""
    run, found = quoted(folder), list[Command]()
    if not finished:
        found.append(Command("Go on", f"nslora resume {run}"))
    if again := _run_again(record):
        found.append(Command("Reproduce", again))
    if finished:
        found.append(Command("Replay from the records, offline", f"nslora replay {run}"))
        found.append(Command("Export as one model", f"nslora export {run} --merged model"))
        if long_prompt:
            found.append(Command("Train the long prompt into the weights", f"nslora merge-prompt {run}"))
    if rounds:
        found.append(Command("Decide a round again", f"nslora fork {run} --at {rounds}"))
        found.append(Command("Show a round in full", f"nslora show {run} --round {rounds}"))
    return found


def _run_again(record: Mapping[str, Any]) -> str:
    """The command that begins the same run anew; "" if Python objects were part of it."""
    task = record["task"]
    if not task["source"] or record["editor_is_object"] or record.get("graph_is_object"):
        return ""
    words = ["nslora run", quote(task["source"])]
    words += [f"--{name} {quote(str(value))}" for name, value in task["options"].items()]
    for name, value in _changed(record["settings"], RunSettings().model_dump(mode="json")):
        words.append(
            f"{OPTION[name]} {quote(str(value))}" if name in OPTION else f"--set {quote(_assignment(name, value))}"
        )
    return " ".join(words)


def _assignment(name: str, value: Any) -> str:
    return f"{name}={json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}"


def _changed(settings: Mapping[str, Any], defaults: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Settings that are not the default ones, by their names with the groups that lead to them."""
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and default:
            yield from _changed(value, default, f"{group}{name}.")
        elif value != default:
            yield f"{group}{name}", value
