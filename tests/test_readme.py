"""The README's own code and drawing."""

import re
from pathlib import Path

import pytest

from nslora.graph.build import build_graph

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_drawing_is_the_one_that_the_code_draws() -> None:
    drawn = build_graph().get_graph().draw_mermaid().strip()
    assert drawn in README, "run: nslora graph --mermaid, and put it into README.md"


def test_the_scripted_editor_does_what_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    lines = next(code for code in PYTHON if "ScriptedChat" in code)
    exec(lines, {})
    said = re.findall(r"print\(.*\)  # (.*)", lines)
    assert capsys.readouterr().out.splitlines() == said
    assert len(said) == 2


@pytest.mark.slow
def test_the_lines_for_python_adapt_a_real_model_and_leave_a_plain_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(PYTHON[0], names)
    report = names["run"].report()  # type: ignore[attr-defined]
    assert {record["action"] for record in report["rounds"]} == {"lora", "textgrad"}
    assert report["test"]["base"]["all_checks"] == 0
    # One burst alone; the demo goes on from here. By hand 0.92 was reached on a like task.
    assert report["test"]["result"]["all_checks"] >= 0.5
    assert str(report["test"]["result"]["all_checks"]) in capsys.readouterr().out
    exec(PYTHON[1].replace("runs/demo", "runs/first"), names)
    assert names["model"].peft_config["default"].r == report["settings"]["lora"]["rank"]  # type: ignore[attr-defined]
