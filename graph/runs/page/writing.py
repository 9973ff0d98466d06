"""Writes pages by Jinja's templates: one file each, with its style and its script inside.

Everything that comes from a run is escaped, and the page's own policy lets the browser run this page's script alone and
ask for nothing.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from nslora.graph.runs.page.comparison import RunsOfOneTask
from nslora.graph.runs.page.content import RunPage
from nslora.graph.runs.page.live import PAGE_FILE
from nslora.graph.runs.page.tested import OUTCOMES
from nslora.graph.runs.view import RunView
from nslora.tools.editor.redaction import scrub
from nslora.tools.errors import NsloraError, RunError
from nslora.tools.files import write_text
from nslora.tools.workspace.workspace import Workspace, open_workspace

REFRESH_S = 10  # of a page whose run is at work
MOST_CHARACTERS = 20_000  # of a text of the editor
KINDS = {"lora": "weights", "textgrad": "prompt"}
GENERATOR = b'<meta name="generator" content="nslora'
TEMPLATES = files(__package__) / "templates"
SECTIONS = {
    "result": "Result",
    "progress": "Progress",
    "decisions": "Decisions",
    "prompt": "Prompt",
    "editor": "Editor",
    "test": "Test rows",
    "cost": "Costs and commands",
}


def write_page(folder: Path, workspace: Workspace | None = None, *, at_work: bool | None = None) -> Path:
    """Write the page of a run into its folder, and return its path.

    The page is `report.html` in the run's folder. That of a finished run is in `result/`, and the first leads to it.

    Args:
        folder: The run's folder.
        workspace: The run's. None opens it, if its task can be had, for the texts of the test split.
        at_work: Whether this process is at work on the run; None asks the lock.

    Raises:
        RunError: If the folder holds no run. DamagedError: If a record is damaged. OSError: If nothing can be written.
    """
    problem = ""
    if workspace is None:
        workspace, problem = _workspace_of(folder)
    page = RunPage(folder, workspace, problem, at_work=at_work)
    if not page.finished:
        write_text(folder / PAGE_FILE, rendered(page))
        return folder / PAGE_FILE
    write_text(folder / "result" / PAGE_FILE, rendered(page))
    write_text(folder / PAGE_FILE, _environment().get_template("moved.html").render(to=f"result/{PAGE_FILE}"))
    return folder / "result" / PAGE_FILE


def write_comparison(runs: Mapping[str, Sequence[Path]], to: Path) -> Path:
    """Write one page of several runs, and return its path.

    Args:
        runs: Folders of finished runs by a title; those under one title answered the same test questions. Without a
            title ("") it is the name of the task.
        to: The file. One that is there is replaced if it is such a page.

    Raises:
        RunError: If runs cannot be compared, or another file is there. OSError: If nothing can be written.
    """
    refuse_other_file(to)
    groups = [RunsOfOneTask(folders, to, title, part) for part, (title, folders) in enumerate(runs.items(), 1)]
    words = {"runs": "Runs", "decisions": "Decisions", "settings": "Settings"}
    sections = [(f"runs-{i}", each.title) for i, each in enumerate(groups, 1)]
    if len(groups) == 1:
        there = {"runs": True, "decisions": groups[0].rounds, "settings": groups[0].rounds and groups[0].differences}
        sections = [(f"{name}-1", words[name]) for name, any_ in there.items() if any_]
    write_text(
        to,
        _render(
            "comparison.html",
            groups=groups,
            title=groups[0].title if len(groups) == 1 else to.resolve().parent.name,
            total=sum(len(group.lines) for group in groups),
            sections=sections,
            written=datetime.now(UTC),
        ),
    )
    return to


def refuse_other_file(path: Path) -> None:
    """Raise RunError if something stands there that is no page of this package."""
    if path.exists() and (not path.is_file() or GENERATOR not in path.read_bytes()[:4096]):
        raise RunError(f"{path} exists and is no page of nslora, so it is not replaced: name another file with --to.")


def rendered(page: RunPage) -> str:
    """The page of one run as HTML."""
    here = {
        "result": True,
        "progress": bool(page.charts),
        "decisions": bool(page.rounds),
        "prompt": True,
        "editor": bool(page.calls),
        "test": page.test is not None,
        "cost": True,
    }
    confusions = page.test.confusions if page.test else ()
    return _render(
        "run.html",
        page=page,
        lead=_lead(page),
        sections=[(name, title) for name, title in SECTIONS.items() if here[name]],
        confusion_tabs=[(f"confusion-{i}", f"{each.check}, {each.candidate}") for i, each in enumerate(confusions, 1)],
        costs=_costs(page),
        names=_names(page),
        settings=json.dumps(page.record["settings"], indent=2, ensure_ascii=False),
        written=page.written,
    )


def _render(template: str, **content: Any) -> str:
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            **content,
            kinds=KINDS,
            outcomes=OUTCOMES,
            refresh_s=REFRESH_S,
            script=Markup(script),
            script_sources=Markup(f"'sha256-{digest}'"),
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            version=version("nslora"),
        )
    )


@cache
def _environment() -> Environment:
    found = Environment(loader=PackageLoader(__package__ or ""), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {
        "fixed": fixed,
        "signed": signed,
        "short": short,
        "count": count,
        "duration": duration,
        "scrub": scrub,
        "cut": lambda text: text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ...",
    }
    return found


def fixed(value: Any, digits: int) -> str:
    """A number with so many digits, a dash if there is none; with a minus sign that is as wide as a plus."""
    return f"{value:.{digits}f}".replace("-", "\u2212") if isinstance(value, int | float) else "\u2013"


def signed(value: Any, digits: int) -> str:
    """A difference, with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\u2212") if isinstance(value, int | float) else "\u2013"


def short(value: Any) -> str:
    """A number with three digits that say something."""
    return f"{value:.3g}".replace("-", "\u2212") if isinstance(value, int | float) else "\u2013"


def count(value: Any) -> str:
    """A whole number, with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u2009") if isinstance(value, int | float) else "\u2013"


def duration(seconds: Any) -> str:
    """Seconds, as people say them."""
    if not isinstance(seconds, int | float):
        return "\u2013"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _workspace_of(folder: Path) -> tuple[Workspace | None, str]:
    """The workspace that knows the run's texts, or why there is none."""
    try:
        return open_workspace(folder, needs_editor=False), ""
    except (NsloraError, OSError) as error:
        return None, str(error)


def _lead(page: RunPage) -> str:
    """What came of the run, in a sentence."""
    view: RunView = page.view
    if page.test:
        counts, rows = page.test.counts, len(page.test.rows)
        base, result = (sum(getattr(row, name).passed for row in page.test.rows) for name in ("base", "result"))
        return (
            f"The base passes {base} of {rows} test questions, the result {result}: {counts['won']} won, "
            f"{counts['lost']} lost, after {_rounds(view)}."
        )
    state = {"running": "at work", "waiting": "waiting for an answer", "stopped": "stopped, and can be resumed"}
    return f"The run is {state.get(view.status, view.status)}, after {_rounds(view)}."


def _rounds(view: RunView) -> str:
    kept = sum(each.kept for each in view.rounds)
    return f"{len(view.rounds)} round{'' if len(view.rounds) == 1 else 's'}, of which {kept} kept"


def _costs(page: RunPage) -> list[tuple[str, str]]:
    """What the run cost by kind; the first evaluation and the test split too, if it has ended."""
    rounds, cost = page.view.rounds, page.report.get("cost")
    if cost is None:
        tokens: Mapping[str, float] = {
            "trained_tokens": sum(each.trained_tokens for each in rounds),
            "generated_tokens": sum(each.generated_tokens for each in rounds),
            "editor_calls": sum(each.editor.get("calls", 0) for each in rounds),
            "editor_cost": sum(each.editor.get("cost", 0.0) for each in rounds),
        }
        cost = {**tokens, "tflop": page.points[-1].tflop if page.points else 0.0}
    found = [("time at work", duration(page.view.wall_s)), ("model compute", f"{short(cost['tflop'])} TFLOP")]
    if cost.get("test_tflop"):
        found.append(("of the test split", f"{short(cost['test_tflop'])} TFLOP more"))
    found += [(f"{kind} tokens", count(cost[f"{kind}_tokens"])) for kind in ("trained", "generated")]
    if cost.get("cached_replies"):
        found.append(("replies from the cache", count(cost["cached_replies"])))
    found.append(("editor calls", count(cost["editor_calls"])))
    if cost.get("editor_tokens"):
        found.append(("editor tokens", count(cost["editor_tokens"])))
    found.append(("editor cost", short(cost.get("editor_cost", 0.0))))
    for name, judge in page.report.get("judges", {}).items():
        found.append(
            (f"judge {name}", f"{judge['calls']} calls, {count(judge['tokens'])} tokens, cost {judge['cost']:g}")
        )
    if tokens_added := page.report.get("prompt_tokens", {}).get("result"):
        found.append(("prompt", f"{tokens_added} tokens in each request"))
    if memory := page.report.get("peak_rss_mb"):
        found.append(("peak memory", f"{count(memory)} MiB"))
    return found


def _names(page: RunPage) -> list[tuple[str, str]]:
    """Hashes and other names of what was used and made."""
    result, task = page.report.get("result", {}), page.record["task"]
    found = [("task", task["hash"][:16]), ("thread", page.record.get("thread", ""))]
    found += [(name, str(page.policy[name])) for name in ("model", "weights", "device", "dtype") if name in page.policy]
    found += [
        ("start prompt", task["prompt"]),
        ("result prompt", result.get("prompt")),
        ("adapter", result.get("adapter")),
    ]
    if sha := page.report.get("adapter_sha256"):
        found.append(("adapter's SHA-256", sha[:16]))
    return [(name, str(value)) for name, value in found if value]
