"""What several commands use: the consoles, following a run, reading --set."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from nslora.graph.cli.plain_console import PlainConsole
from nslora.tools.errors import SettingsError

if TYPE_CHECKING:
    from nslora.graph.cli.reporters import Reporter

PRICES = "editing.prices."
BAD_INPUT, RESUMABLE = 1, 3  # exit statuses; 130 is that of Ctrl-C
out = PlainConsole(soft_wrap=False)
Silent = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON line per event, for programs.")]
err = PlainConsole(stderr=True, soft_wrap=True, highlight=False)


def follow(begun: Any, say: "Reporter", answer: dict[str, str] | None = None) -> None:
    """Work on a run until it ends, is stopped or asks a person, and tell it; then say how to go on with it."""
    from langgraph.errors import GraphDrained
    from langgraph.runtime import RunControl

    from nslora.graph.cli.stop_signals import stopping
    from nslora.tools.files import from_here, quoted

    control = RunControl()
    go_on = f"nslora resume {quoted(begun.folder)}"

    def at_once() -> None:
        out.show_cursor(True)  # the progress bar hides it, and gets no chance to bring it back
        say.stopped("Stopped at once; the step that was under way will be done again.", go_on)

    with stopping(control, err.print, at_once) as stopper:
        try:
            say.follows(begun, begun.stream(control=control, answer=answer))
        except GraphDrained:
            say.stopped("Stopped; every finished step is kept.", go_on)
            raise typer.Exit(stopper.exit_status) from None
    waiting = begun.question()
    if waiting is not None:
        say.asks(from_here(begun.folder), waiting)
        raise typer.Exit(RESUMABLE)
    say.ended(from_here(begun.folder), begun.report())


def parsed(assignments: list[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """`lora.rank=16` to {"lora": {"rank": 16}}; values are read as YAML.

    elsewhere: names that have an option of their own, and its name. Raises SettingsError.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, found, value = assignment.partition("=")
        if not found or not name.strip():
            raise SettingsError(f"--set {assignment}: write it as name=value, such as lora.rank=16.")
        *groups, last = steps(name.strip())
        if (first := [*groups, last][0]) in elsewhere:
            raise SettingsError(f"--set {assignment}: {first} is given otherwise: {elsewhere[first]}.")
        place = settings
        for each in groups:
            place = group(place, each)
        try:
            place[last] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # 2024-13-45 reads as a date, which it is not
            problem = getattr(error, "problem", None) or "no valid YAML"
            raise SettingsError(f"--set {assignment}: the value cannot be read ({problem}).") from error
    return settings


def steps(name: str) -> list[str]:
    """The groups that lead to a setting, and its own name; that of a priced model may hold dots, as in gpt-4.1."""
    if not name.startswith(PRICES):
        return name.split(".")
    model, _, field = name.removeprefix(PRICES).rpartition(".")
    return [*PRICES.split(".")[:-1], *([model, field] if field in ("input", "output") else [name.removeprefix(PRICES)])]


def group(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """A group of settings, made if it is missing. Raises SettingsError if a plain value has its name."""
    found = settings.setdefault(name, {})
    if not isinstance(found, dict):
        raise SettingsError(
            f"--set {name}={found}: {name} is a group of settings: set its fields, as in {name}.FIELD=VALUE."
        )
    return found
