"""The page of several runs: paired differences, curves over compute, decisions beside each other."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from nslora.graph.runs.compare import Comparison, Gain, compare
from nslora.graph.runs.page.charts import STYLES, Interval, curves_chart, forest_chart
from nslora.graph.runs.page.content import RunPage
from nslora.graph.runs.view import Round
from nslora.tools.workspace.record import recorded_settings

MOST_SIDE_BY_SIDE = 12  # runs whose decisions stand beside each other


@dataclass(frozen=True)
class Line:
    """A run in the table. gain: None of the first. link: its own page as seen from this one, "" if it has none."""

    name: str
    page: RunPage
    all_checks: float
    reward: float
    gain: Gain | None
    link: str

    @property
    def actions(self) -> Sequence[Round]:
        """Its rounds."""
        return self.page.view.rounds


class RunsOfOneTask:
    """Finished runs that answered the same test questions; the first is what the others are compared with.

    Args:
        folders: The runs' folders.
        to: The page, from which links lead to the runs' own pages.
        title: Of these runs; "" for the name of the task.
        part: Number of these runs on the page.

    Raises:
        RunError: If a run has no result, or the runs answered different test questions.
    """

    def __init__(self, folders: Sequence[Path], to: Path, title: str = "", part: int = 1) -> None:
        self.part = part
        self.comparison: Comparison = compare(folders)
        self.pages = [RunPage(folder) for folder in folders]
        self.title = title or self.pages[0].view.task
        names = [folder.resolve().name for folder in folders]
        twice = {name for name in names if names.count(name) > 1}
        gains = [None, *self.comparison.gains]
        self.lines = [
            Line(
                str(folder) if name in twice else name, page, run.all_checks, run.reward, gain, _link(folder, to.parent)
            )
            for folder, name, page, run, gain in zip(
                folders, names, self.pages, self.comparison.runs, gains, strict=True
            )
        ]

    @cached_property
    def charts(self) -> list[tuple[str, str, Markup]]:
        """Title, caption and drawing of each chart."""
        rest = [(each.name, each.gain) for each in self.lines if each.gain]
        words = "Dots are means over the test questions, paired by question; bars are 95 % intervals."
        found = []
        for title, key in (("Difference in all checks", "all_checks"), ("Difference in reward", "reward")):
            rows = [(name, Interval(*getattr(gain, key))) for name, gain in rest]
            if rows:
                found.append((title, words, forest_chart(rows, key.replace("_", " "), self.part)))
        return found

    @cached_property
    def curves(self) -> Markup | None:
        """The reward of each run over compute; None if no run knows its compute."""
        runs = [(each.name, each.page.points) for each in self.lines if each.page.points]
        return curves_chart(runs, self.part) if any(points[-1].tflop > 0 for _, points in runs) else None

    @cached_property
    def legend(self) -> list[tuple[str, int, str]]:
        """Name, number of its colour and style of each curve."""
        names = [each.name for each in self.lines if each.page.points]
        styles = {"-": "solid", "--": "dashed", ":": "dotted"}
        return [(name, i % 6 + 1, styles[STYLES[i // 6 % len(STYLES)]]) for i, name in enumerate(names)]

    @property
    def rounds(self) -> list[tuple[Round | None, ...]]:
        """The rounds beside each other, None where a run has ended; nothing if there are too many runs."""
        if len(self.lines) > MOST_SIDE_BY_SIDE:
            return []
        return list(zip_longest(*(each.actions for each in self.lines)))

    @cached_property
    def differences(self) -> list[tuple[str, list[Any]]]:
        """The settings in which the runs differ."""
        flat = [dict(_flat(recorded_settings(page.folder, page.record).model_dump(mode="json"))) for page in self.pages]
        names = dict.fromkeys(name for each in flat for name in each)
        rows = [(name, [each.get(name) for each in flat]) for name in names]
        return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def _flat(settings: Mapping[str, Any], group: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and value
        found += _flat(value, f"{group}{name}.") if nested else [(f"{group}{name}", value)]
    return found


def _link(folder: Path, from_: Path) -> str:
    page = folder / "result" / "report.html"
    return quote(os.path.relpath(page.resolve(), from_.resolve())) if page.is_file() else ""
