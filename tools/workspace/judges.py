"""The judges of a task inside a run: their place, what they have cost, and how far they agree with labelled rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nslora.tools.editor.pricing import Usage
from nslora.tools.editor.settings import JudgeSettings
from nslora.tools.files import read_json
from nslora.tools.rewards.judging import Agreement
from nslora.tools.tasks.task import Task

if TYPE_CHECKING:
    from nslora.tools.workspace.workspace import Workspace

AGREEMENT_FILE = "judges.json"
SAFETY = 1.25  # on the tokens of a call: later replies may be longer


def agreements_of(task: Task) -> dict[str, Agreement]:
    """Measure each judge that has labelled rows, by the name of its check. Raises RewardError."""
    found = {check.name: check.agreement() for check in task.reward.judges}
    return {name: each for name, each in found.items() if each is not None}


def judges_report(workspace: Workspace) -> dict[str, Any]:
    """Each judge by the name of its check: its model, replies judged, cost, and its agreement with labelled rows."""
    path = workspace.folder / AGREEMENT_FILE
    known = read_json(path) if path.is_file() else {}
    found: dict[str, Any] = {}
    for check in workspace.task.reward.judges:
        spent, (judged, wavered) = check.spent, check.judged
        found[check.name] = {
            "model": check.judge,
            "judged": judged,
            "wavered": wavered,
            "calls": spent.calls,
            "tokens": spent.tokens,
            "cost": spent.cost,
            "agreement": known.get(check.name),
        }
    return found


def why_unaffordable(settings: JudgeSettings, spent: Usage, calls: int) -> str:
    """Why a judge cannot make so many further calls within its caps, at the mean of its calls so far; "" if it can."""
    each = SAFETY / max(1, spent.calls)
    for name, cap, used, needed in (
        ("calls", settings.max_calls, spent.calls, calls),
        ("tokens", settings.max_tokens, spent.tokens, calls * spent.tokens * each),
        ("cost", settings.max_cost, spent.cost, calls * spent.cost * each),
    ):
        if cap is not None and used + needed > cap:
            return (
                f"{used:g} of the judge's {name} {cap:g} are spent, and an update with the test may take {needed:.4g}"
            )
    return ""
