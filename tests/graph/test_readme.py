"""The snippets of graph/README.md: they run in order, and use public names only."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nslora
from nslora.graph.state import AdaptationState

PAGE = (Path(__file__).parents[2] / "graph" / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FILE = re.compile(r"# (\w+)\.py\n")  # the first line of a snippet that is a module
PUBLIC = ("nslora", *(f"nslora.{each}" for each in ("errors", "nodes", "router", "settings", "testing", "tracking")))


@pytest.fixture(scope="module")
def run_until(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Runs the snippets up to a number in one namespace and one folder, each once."""
    names: dict[str, Any] = {"__name__": "readme"}
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        patch.setattr(sys, "path", list(sys.path))

        def run(last: int) -> dict[str, Any]:
            for number in range(len(done), last + 1):
                snippet = SNIPPETS[number]
                if module := FILE.match(snippet):
                    Path(f"{module[1]}.py").write_text(snippet, encoding="utf-8")
                else:
                    exec(compile(snippet, f"graph/README.md, snippet {number}", "exec"), names)
                done.append(number)
            return names

        yield run


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs_after_those_before_it(number: int, run_until: Callable[[int], dict[str, Any]]) -> None:
    run_until(number)


def test_the_snippets_say_what_the_page_promises(
    run_until: Callable[[int], dict[str, Any]],
) -> None:
    names = run_until(len(SNIPPETS) - 1)
    spans = {span.name: span for span in names["spans"].get_finished_spans()}
    assert {"tuning", "textgrad_edit", "editor: improve 1", "finish"} <= spans.keys()
    edit = spans["textgrad_edit"].context
    assert spans["editor: improve 1"].parent.span_id == edit.span_id
    assert spans["finish"].parent.span_id == spans["tuning"].context.span_id
    assert [each.action for each in names["result"].rounds] == ["lora"]
    assert names["result"].rounds[0].reason.startswith("P(content) is ")
    assert names["other"].show(1).round.action == "lora"
    reports = {path.parent.parent.name for path in Path("runs").glob("*/result/report.json")}
    runs = {path.name for path in Path("runs").iterdir()}
    assert runs - reports == {"served"}  # the server's to run
    assert (len(names["longer"].rounds), names["longer"].report["test_looks"]) == (2, 2)
    stopped = nslora.Run.open("runs/stopped-early").report()
    assert (stopped["stop"], stopped["rounds"]) == ("stopped by hand", [])
    rejected = nslora.Run.open("runs/approved").report()["rounds"][0]
    assert (rejected["person"], rejected["error"]) == ({"answer": "reject"}, "rejected by a person")


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_imports_public_names_only(snippet: str) -> None:
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nslora"):
            assert node.module in PUBLIC
            module = __import__(node.module, fromlist=["_"])
            assert {each.name for each in node.names} <= set(module.__all__)


def test_the_table_names_every_key_of_the_state() -> None:
    table = PAGE[PAGE.index("## The state") : PAGE.index("## Run the graph")]
    keys = {
        key for cell in re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", cell)
    }
    assert keys == set(AdaptationState.__annotations__)
