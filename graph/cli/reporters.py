"""Who hears of a run: people at a terminal, nobody (`--quiet`), or a program (`--json`, one JSON line per event)."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from nslora.graph.cli.common import err, out
from nslora.tools.errors import SettingsError

Stream = Iterator[tuple[str, Any]]


class Reporter(Protocol):
    """What a command says of the run that it works on."""

    def begins(self, facts: Mapping[str, Any]) -> None:
        """The run begins or goes on. facts: task, rows, model, editor, strategy, seed."""

    def note(self, text: str) -> None:
        """A remark that should be read."""

    def follows(self, run: Any, stream: Stream) -> None:
        """Follow the run's stream to its end."""

    def stopped(self, text: str, go_on: str) -> None:
        """The run was stopped. go_on: the command that goes on."""

    def asks(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """The run waits for a person."""

    def ended(self, folder: Path, report: Mapping[str, Any]) -> None:
        """The run has a result."""


class ForPeople:
    """Progress in one line, a line or two each round, the result in tables."""

    def begins(self, facts: Mapping[str, Any]) -> None:
        rows = facts["rows"]
        out.print(
            f"task     {facts['task']}: {rows['train']} train, {rows['validation']} validation, {rows['test']} test "
            f"rows; model {facts['model']}; editor {facts['editor']}; strategy {facts['strategy']}; "
            f"seed {facts['seed']}"
        )

    def note(self, text: str) -> None:
        out.print(text)

    def follows(self, run: Any, stream: Stream) -> None:
        from nslora.graph.cli.progress import show_run

        show_run(out, stream, meter_of(run))

    def stopped(self, text: str, go_on: str) -> None:
        err.print(f"{text} Go on with: {go_on}")

    def asks(self, folder: Path, asked: Mapping[str, Any]) -> None:
        from nslora.graph.cli.tables import show_question

        show_question(out, folder, asked)

    def ended(self, folder: Path, report: Mapping[str, Any]) -> None:
        from nslora.graph.cli.progress import show_result

        show_result(out, folder, report)


class Quiet:
    """Says nothing but errors, which go to stderr; the exit status tells the rest."""

    def begins(self, facts: Mapping[str, Any]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def follows(self, run: Any, stream: Stream) -> None:
        for _ in stream:
            pass

    def stopped(self, text: str, go_on: str) -> None:
        """Nothing."""

    def asks(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """Nothing."""

    def ended(self, folder: Path, report: Mapping[str, Any]) -> None:
        """Nothing."""


class ForPrograms:
    """One JSON object a line on stdout; its fields are in graph/README.md."""

    def begins(self, facts: Mapping[str, Any]) -> None:
        self._say("begins", facts)

    def note(self, text: str) -> None:
        self._say("note", {"text": text})

    def follows(self, run: Any, stream: Stream) -> None:
        meter = meter_of(run)
        for mode, part in stream:
            if mode == "custom":
                self._say("progress", part)
                continue
            for node, changes in part.items():
                if node == "__interrupt__":
                    continue
                meter.saw(changes or {})
                self._node(changes or {}, {"left_s": meter.left_s, "cost": meter.cost})

    def _node(self, changes: Mapping[str, Any], meter: Mapping[str, Any]) -> None:
        if changes.get("start_measured"):
            self._say("start", {**changes["start_measured"], **meter})
        decision = changes.get("decision")
        if decision and decision["action"] != "finish":
            self._say("decision", decision)
        for record in changes.get("rounds", ()):
            self._say("round", {**record, **meter})
        if changes.get("stop"):
            self._say("stop", {"reason": changes["stop"]})

    def stopped(self, text: str, go_on: str) -> None:
        self._say("stopped", {"go_on": go_on})

    def asks(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self._say("question", {"folder": str(folder), **asked})

    def ended(self, folder: Path, report: Mapping[str, Any]) -> None:
        names = ("result", "test", "validation", "cost", "wall_s", "stop")
        self._say("result", {"folder": str(folder / "result"), **{name: report[name] for name in names}})

    def _say(self, event: str, fields: Mapping[str, Any]) -> None:
        print(json.dumps({"event": event, **_finite(fields)}, ensure_ascii=False, default=str), flush=True)


def reporter_of(quiet: bool, json_: bool) -> Reporter:
    """The reporter that the options ask for. Raises SettingsError if they ask for two."""
    if quiet and json_:
        raise SettingsError("Give --quiet or --json, not both.")
    return Quiet() if quiet else ForPrograms() if json_ else ForPeople()


def facts_of(task: Any, model: str, editor: str, strategy: str, seed: int) -> dict[str, Any]:
    """What is known of a run before the libraries are imported, which takes seconds."""
    rows = {split: len(getattr(task, split)) for split in ("train", "validation", "test")}
    return {"task": task.name, "rows": rows, "model": model, "editor": editor, "strategy": strategy, "seed": seed}


def meter_of(run: Any) -> Any:
    """A meter that knows what the run has done so far."""
    from nslora.graph.cli.meter import Meter

    return Meter(run.workspace.task, run.workspace.settings, run.state())


def _finite(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
