"""What is shown was written by models, editors and users: it is shown as it is, whatever brackets it holds."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from nslora.graph.cli import app as cli
from nslora.graph.cli.plain_console import PlainConsole
from nslora.graph.cli.progress import next_node, show_labels, show_node, show_result
from nslora.graph.cli.tables import short, show_question, show_round
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look

HOSTILE = ("[/INST] Sure!", "[dev]", r"\[/b]", "[bold]", "[/]", ":heart:")


def console() -> Any:
    return PlainConsole(file=io.StringIO(), width=200)


def text_of(shown: Console) -> str:
    return shown.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("node", "changes", "upcoming"),
    [
        ("classify", {"decision": {"action": "lora"}}, "lora_update"),
        ("classify", {"decision": {"action": "textgrad"}}, "textgrad_edit"),
        ("classify", {"decision": {"action": "finish"}}, "finish"),
        ("textgrad_edit", {}, "evaluate"),
        ("approve", {}, "evaluate"),
        ("evaluate", {}, "monitor"),
        ("monitor", {}, "classify"),
        ("monitor", {"stop": "enough"}, "finish"),
    ],
)
def test_the_progress_line_names_the_node_that_works_next(node: str, changes: dict[str, Any], upcoming: str) -> None:
    assert next_node(node, changes) == upcoming


def test_control_sequences_are_shown_and_not_obeyed() -> None:
    assert "\x1b" not in short("a critique in \x1b[31mred")
    out = console()
    out.print("\x1b]0;renamed\x07 \x1b[31mred", highlight=False)
    assert text_of(out) == "␛]0;renamed␇ ␛[31mred\n"


@pytest.mark.parametrize("said", HOSTILE)
def test_a_round_is_shown_whatever_its_note_says(finished: Run, said: str) -> None:
    record = {**finished.report()["rounds"][0], "reason": said, "note": said, "verdict": said}
    out = console()
    show_node(out, "monitor", {"rounds": [record], "stop": said})
    assert text_of(out).count(said) == 4


@pytest.mark.parametrize("said", HOSTILE)
def test_a_result_is_shown_whatever_its_checks_are_called(finished: Run, said: str) -> None:
    report = finished.report()
    for name in ("base", "result"):
        report["test"][name] = {**report["test"][name], "checks": {said: 0.5}, "reward": 0.5}
    out = console()
    show_result(out, finished.folder / said, report)
    assert said in text_of(out)
    assert "gain in reward +0.000, 95 % interval [0.00, 0.00]" in text_of(out)
    assert "The weights are unchanged: result/ has no adapter." in text_of(out)
    assert f"{said}/result" in text_of(out).replace("\n", "")


@pytest.mark.parametrize("said", HOSTILE)
def test_failures_and_questions_are_shown_as_they_are(finished: Run, said: str) -> None:
    details = look(finished.folder).round(1)
    object.__setattr__(details, "critiques", (said,))
    out = console()
    show_round(out, details)
    show_question(
        out,
        finished.folder,
        {
            "screening": {"rows": 1, "kept": 0.0, "proposed": 1.0},
            "kind": "textgrad",
            "round": 1,
            "note": said,
            "reason": said,
            "diff": "",
            "problem": said,
        },
    )
    assert text_of(out).count(said) == 4


@pytest.mark.parametrize("said", HOSTILE)
def test_every_command_prints_through_such_a_console(said: str) -> None:
    for each in (cli.out, cli.err):
        with each.capture() as shown:
            each.print(said, highlight=False)
        assert said in shown.get()


def test_the_numbers_of_labels_are_shown_for_base_and_result() -> None:
    numbers = {
        "macro_f1": 0.5,
        "no_label": 2,
        "labels": {"spam": {"precision": 0.25, "recall": 1.0, "f1": 0.4, "support": 7}},
    }
    shown = console()
    show_labels(shown, {"test": {"base": {"labels": {"topic": numbers}}, "result": {}}})
    assert "base, topic: macro-F1 0.500, 2 replies" in text_of(shown)  # the title wraps behind it
    assert re.search(r"spam .*0\.250 .*1\.000 .*0\.400 .*7", text_of(shown))
