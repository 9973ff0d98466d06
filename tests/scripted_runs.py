"""Runs with scripted edits, for tests of forks and replays."""

from pathlib import Path
from typing import Any

from fakes import ObedientPolicy
from langchain_core.messages import BaseMessage

from nslora.graph.runs.run import Run
from nslora.tools.prompt import Prompt
from nslora.tools.tasks.task import Task
from nslora.tools.testing.scripted_chat import ScriptedChat, improved

BULLETS = Prompt("Answer in one line that begins with a dash.")
ONCE, TWICE, THRICE = (Prompt(f"Be worse, {often}.") for often in ("once", "twice", "three times"))


def edits(*proposed: Prompt | Exception, **fields: Any) -> ScriptedChat:
    """An editor that proposes these one after the other, and then the last again; its critiques are all alike."""
    left = list(proposed)

    def answer(messages: list[BaseMessage]) -> str:
        if "gradient (feedback) engine" in str(messages[0].text):
            return "Ask for a dash."
        new = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(new, Exception):
            raise new
        return f"Ask for a dash.\n{improved(new)}"

    return ScriptedChat([answer], repeat=True, **fields)


def begun(tmp_path: Path, task: Task, editor: Any, name: str = "run", **settings: Any) -> Run:
    values = {"model": ObedientPolicy(), "strategy": "textgrad", "max_rounds": 3, "reuse_replies": False, **settings}
    return Run.create(tmp_path / name, task=task, editor=editor, **values)


def rows(task: Task, split: str) -> list[dict[str, str]]:
    """A split as rows for a task of one's own."""
    return [{"question": row.question, "reference": str(row.reference)} for row in getattr(task, split)]


OF_ONE_RUN = ("wall_s", "note", "editor", "generated_tokens", "cached_replies")


def results(run: Run) -> dict[str, Any]:
    """What two runs of the same settings have in common: all but the clock, and replies that the other had made."""
    report = run.report()
    rounds = [{key: value for key, value in each.items() if key not in OF_ONE_RUN} for each in report["rounds"]]
    return {"result": report["result"], "sha256": report["adapter_sha256"], "rounds": rounds, "test": report["test"]}
