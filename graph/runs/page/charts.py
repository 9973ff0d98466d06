"""Charts of a page, drawn by Matplotlib as SVG that stands in the page itself.

Matplotlib knows fixed colours only. Each is drawn in a colour of its own that stands for a variable of the page's style
sheet, so that a chart follows the page's light and dark theme. Text stays text.
"""

import io
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

NAMES = ("ink", "muted", "line", "paper", "lora", "textgrad", "good", "bad", *(f"series-{i}" for i in range(1, 7)))
COLOUR = {name: f"#0a00{number:02x}" for number, name in enumerate(NAMES)}
_VARIABLE = {value: f"var(--{name})" for name, value in COLOUR.items()}
_STANDS_FOR = re.compile(r"#0a00[0-9a-f]{2}")
_LEFT_OUT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
_OWN_ID = re.compile(r' id="[A-Za-z][\w.]*_\d+"')  # of Matplotlib's groups: the same in every chart
_SIZE = re.compile(r' (?:width|height)="[\d.]+pt"')
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs may hold any sign
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOUR["line"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOUR["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOUR["line"],
    "ytick.color": COLOUR["line"],
    "xtick.labelcolor": COLOUR["muted"],
    "ytick.labelcolor": COLOUR["muted"],
    "text.color": COLOUR["ink"],
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_DRAWING = threading.Lock()  # Matplotlib's settings are the whole process's
WIDTH, HEIGHT = 4.6, 2.9  # inches at 72 points; the page scales the chart to its column
LONGEST_NAME = 20  # characters beside a chart; the middle of a longer name is left out
STYLES = ("-", "--", ":")


@dataclass(frozen=True)
class Point:
    """A measured candidate. action: "" of the start. reward: None if the update failed before it could be measured."""

    round: int
    tflop: float
    reward: float | None
    action: str
    kept: bool


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval; without ends if nothing is known of them."""

    mean: float
    low: float | None = None
    high: float | None = None


def chart(
    draw: Callable[[Axes], None],
    *,
    name: str,
    label: str,
    width: float = WIDTH,
    height: float = HEIGHT,
    left: float = 0.6,
) -> Markup:
    """A chart as SVG.

    Args:
        draw: Draws into the axes.
        name: Unique on the page.
        label: What a screen reader says of it.
        width, height: In inches.
        left: Inches for the labels of the vertical axis. Matplotlib's own layouts would draw the chart twice.
    """
    with _DRAWING, matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        figure.patch.set_alpha(0)
        below, above = 0.52 / height, 0.16 / height
        axes = figure.add_axes((left / width, below, 1 - (left + 0.12) / width, 1 - below - above))
        axes.patch.set_alpha(0)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = _SIZE.sub("", _OWN_ID.sub("", _LEFT_OUT.sub("", file.getvalue())))
    svg = _STANDS_FOR.sub(lambda found: _VARIABLE[found[0]], svg).strip()
    return Markup('<svg class="chart" role="img" aria-label="{}"').format(label) + Markup(svg.removeprefix("<svg"))


def reward_chart(points: Sequence[Point], *, over: str) -> Markup:
    """Validation reward over rounds or over compute ("tflop"): the candidate in force as a line, each update a mark."""
    measured = [each for each in points if each.reward is not None]

    def draw(axes: Axes) -> None:
        x, y = _in_force(points, over)
        axes.plot(x, y, color=COLOUR["muted"], drawstyle="steps-post", linewidth=1.2, zorder=1)
        for each in measured:
            colour = COLOUR[each.action or "muted"]
            face = colour if each.kept else COLOUR["paper"]
            place = getattr(each, over), each.reward or 0.0
            axes.scatter(*place, s=46, facecolors=face, edgecolors=colour, linewidths=1.5, zorder=3)
            if each.round and over == "tflop":
                axes.annotate(
                    str(each.round),
                    place,
                    xytext=(0, 7 if each.kept else -14),
                    textcoords="offset points",
                    ha="center",
                    color=COLOUR["muted"],
                    fontsize=8.5,
                )
        _unit_axis(axes)
        _count_axis(axes, over)

    first, last = measured[0], max((each for each in measured if each.kept), key=lambda each: each.round)
    words = "rounds" if over == "round" else "compute"
    label = f"Validation reward over {words}: from {first.reward:.3f} to {last.reward:.3f} after round {last.round}."
    return chart(draw, name=f"reward-{over}", label=label)


def curves_chart(runs: Sequence[tuple[str, Sequence[Point]]], part: int) -> Markup:
    """The reward in force of several runs over compute. part: of the page, for names that are unique on it."""

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(runs):
            x, y = _in_force(points, "tflop")
            colour, style = COLOUR[f"series-{number % 6 + 1}"], STYLES[number // 6 % len(STYLES)]
            axes.plot(x, y, color=colour, linestyle=style, drawstyle="steps-post", label=name)
            axes.scatter(x, y, s=22, color=colour, zorder=3)
        _unit_axis(axes)
        _count_axis(axes, "tflop")

    last = "; ".join(f"{name}: {_in_force(points, 'tflop')[1][-1]:.3f}" for name, points in runs)
    return chart(draw, name=f"curves-{part}", label=f"Validation reward over compute, at the end {last}.")


def loss_chart(jobs: Sequence[tuple[int, Sequence[float]]]) -> Markup:
    """The loss of each training step, one line for each training job: (its round, nats per token)."""
    shades = cycle(("lora", "series-2", "series-3", "series-4", "series-5", "series-6"))

    def draw(axes: Axes) -> None:
        first = 1
        for (number, losses), shade in zip(jobs, shades, strict=False):
            steps = range(first, first + len(losses))
            axes.plot(steps, losses, color=COLOUR[shade], marker="o" if len(losses) < 8 else "", markersize=3)
            words, place = f"{'round ' if first == 1 else ''}{number}", axes.get_xaxis_transform()
            axes.text(first, 1.01, words, transform=place, color=COLOUR["muted"], fontsize=8.5)
            first += len(losses)
        if min(min(losses) for _, losses in jobs) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("training step")
        axes.set_ylabel("loss, nats per token")

    ends = "; ".join(f"round {number} from {losses[0]:.3g} to {losses[-1]:.3g}" for number, losses in jobs)
    return chart(draw, name="loss", label=f"Loss of each training step in nats per token: {ends}.")


def splits_chart(rows: Sequence[tuple[str, Interval, Interval]]) -> Markup:
    """Validation beside test: a row for each candidate, (its name, mean reward on validation, mean reward on test)."""

    def draw(axes: Axes) -> None:
        for number, (_, validation, test) in enumerate(rows):
            for each, shift, filled in ((validation, -0.13, False), (test, 0.13, True)):
                _interval(axes, each, number + shift, COLOUR["good"] if number else COLOUR["muted"], filled=filled)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-0.04, 1.04)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("mean reward; hollow: validation, filled: test")

    said = "; ".join(f"{name}: validation {one.mean:.3f}, test {other.mean:.3f}" for name, one, other in rows)
    return chart(draw, name="splits", label=f"Mean reward on validation and on test. {said}.", height=1.9)


def forest_chart(rows: Sequence[tuple[str, Interval]], what: str, part: int) -> Markup:
    """Paired differences with their intervals, one row each, against a line at no difference. part: of the page."""

    def draw(axes: Axes) -> None:
        names = [name if len(name) <= LONGEST_NAME else f"{name[:10]}…{name[-9:]}" for name, _ in rows]
        axes.axvline(0, color=COLOUR["muted"], linewidth=1)
        for number, (_, each) in enumerate(rows):
            sure = (each.low or 0) > 0 or (each.high or 0) < 0
            colour = COLOUR["muted"] if not sure else COLOUR["good"] if each.mean > 0 else COLOUR["bad"]
            _interval(axes, each, number, colour, filled=True)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{what}, less that of the first run")

    said = "; ".join(f"{name} {each.mean:+.3f} [{each.low:+.3f}, {each.high:+.3f}]" for name, each in rows)
    return chart(
        draw, name=f"forest-{what.split()[0]}", label=f"{what}: {said}.", height=0.8 + 0.36 * len(rows), left=1.7
    )


def _in_force(points: Sequence[Point], over: str) -> tuple[list[float], list[float]]:
    """The reward of the candidate in force, from each point on."""
    x, y = list[float](), list[float]()
    for each in points:
        x.append(float(getattr(each, over)))
        y.append(each.reward if each.kept and each.reward is not None else y[-1])
    return x, y


def _interval(axes: Axes, each: Interval, at: float, colour: str, *, filled: bool) -> None:
    if each.low is not None and each.high is not None:
        axes.plot([each.low, each.high], [at, at], color=colour, linewidth=1.6, solid_capstyle="butt")
    face: Any = colour if filled else COLOUR["paper"]
    axes.scatter(each.mean, at, s=42, facecolors=face, edgecolors=colour, linewidths=1.5, zorder=3)


def _unit_axis(axes: Axes) -> None:
    axes.set_ylim(-0.04, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("reward on validation")


def _count_axis(axes: Axes, over: str) -> None:
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=over == "round"))
    axes.set_xlabel("round" if over == "round" else "model compute so far, TFLOP")
