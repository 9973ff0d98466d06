"""A run in which everybody is hostile: rows, prompt, editor and policy try to run a script on the run's page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import ObedientPolicy
from scripted_runs import begun, edits

from nslora.graph.runs.run import Run
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.schema import Dialogue
from nslora.tools.tasks.task import Task, task_from_rows

SCRIPT = (
    "<script>window.hacked=1</script><img src=x onerror=window.hacked=1><svg onload=window.hacked=1>"
    "--></script></style></title></textarea>\"' onfocus=window.hacked=1 autofocus x='"
)
LABELS = ("sun & rain", "snow & 'ice'", "wind")
RIGHT = Prompt(f"dash {SCRIPT}", demonstrations=(Demonstration(f"Like what? {SCRIPT}", f"{LABELS[0]} {SCRIPT}"),))


@dataclass
class HostilePolicy(ObedientPolicy):
    """Under a prompt with "dash" it gives the right label of all rows but each fifth, else the first label."""

    def reply(self, dialogue: Dialogue, adapter: str | None) -> str:
        number = int(dialogue[-1]["content"].split()[1])
        knows = "dash" in dialogue[0]["content"] and dialogue[0]["role"] == "system" and number % 5
        return f"{LABELS[number % 3 if knows else 0]} {SCRIPT}"


def hostile_task(rows: int = 12) -> Task:
    def split(kind: str) -> list[dict[str, str]]:
        return [
            {"question": f"{kind} {i} weather? {SCRIPT}", "reference": LABELS[i % 3], "remark": SCRIPT}
            for i in range(rows)
        ]

    reward: list[Any] = [{"check": "label", "name": "the <b>label</b>"}, {"check": "contains", "name": "words"}]
    return task_from_rows(
        train=split("train"), validation=split("validation"), test=split("test"), reward=reward, name=f"task {SCRIPT}"
    )


def hostile_run(folder: Path, **settings: Any) -> Run:
    """The run, not yet adapted; its folder has a hostile name too."""
    settings = {"model": HostilePolicy(), "max_rounds": 2, "keep": {"level": 0.45}, **settings}
    return begun(folder, hostile_task(), edits(RIGHT), name="run <img src=x onerror=window.hacked=1>", **settings)
