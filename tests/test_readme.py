"""The code and the drawing of README.md, and the code of the folders' pages."""

import re
from pathlib import Path

import pytest

import nslora
from nslora.tools.inference.weights import EMBEDDED_HUB_ID, resolve_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_drawing_is_the_one_that_the_code_draws() -> None:
    drawn = nslora.build_graph().get_graph().draw_mermaid().strip()
    assert drawn in README, "run: nslora graph --mermaid, and put it into README.md"


def test_the_page_stays_one_that_is_read() -> None:
    assert len(README.splitlines()) <= 200


def test_every_link_leads_to_a_file() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_page_of_the_editor_says_what_its_code_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (lines,) = python_of((ROOT / "tools/editor/README.md").read_text(encoding="utf-8"))
    exec(lines, {})
    said = re.findall(r"print\(.*\)  # (.*)", lines)
    assert capsys.readouterr().out.splitlines() == said
    assert len(said) == 2


@pytest.mark.engines
def test_the_lines_for_python_adapt_a_real_model_and_leave_a_plain_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    adapting, loading = python_of(README)
    names: dict[str, object] = {}
    exec(adapting, names)
    result = names["result"]
    assert isinstance(result, nslora.Result)
    assert {each.action for each in result.rounds} == {"lora", "textgrad"}
    # One training job alone; the demo goes on from here. By hand 0.92 was reached on a like task.
    assert (result.test.base, result.test.result >= 0.5) == (0, True)
    assert f"0.00 -> {result.test.result:.2f} [+" in capsys.readouterr().out
    exec(loading.replace(EMBEDDED_HUB_ID, resolve_model(EMBEDDED_HUB_ID).location), names)
    rank = result.report["settings"]["lora"]["rank"]
    assert names["model"].peft_config["default"].r == rank  # type: ignore[attr-defined]
