"""The front door: what `nslora` names is public, cheap to import, and enough for README and the notebooks."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

import nslora
from nslora.errors import RunError, SettingsError

ROOT = Path(__file__).parents[2]
NAMES = ("Run", "adapt", "load_task", "task_from_rows", "Task", "Example", "Score", "Prompt", "Demonstration",
         "Section", "Result", "build_graph", "build_workflow", "sweep")  # fmt: skip
MODULES = ("errors", "settings", "testing", "router", "nodes", "tracking", "agents")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_neither_torch_nor_langgraph() -> None:
    said = run_python(
        "import sys, nslora; print(nslora.__version__, sorted({'torch', 'langgraph'} & sys.modules.keys()))"
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+ \[\]\n", said)


def test_no_public_name_loads_torch() -> None:
    loaded = run_python(
        f"import sys; from nslora import {', '.join(NAMES)}; import {', '.join(f'nslora.{each}' for each in MODULES)}\n"
        "print(sorted({'torch', 'transformers', 'textgrad', 'peft', 'trl'} & sys.modules.keys()))"
    )
    assert loaded == "[]\n"


def test_the_package_lists_what_it_names_and_refuses_what_it_does_not() -> None:
    assert {*NAMES, *MODULES} <= set(dir(nslora))
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = nslora.Trainer


def test_nobody_imports_the_front_door_by_its_folder() -> None:
    """An editable install also has `nslora.graph.api`, a wheel does not, and its classes would be other ones."""
    files = [
        path for folder in ("graph", "nodes", "tools", "tests", "notebooks") for path in (ROOT / folder).rglob("*")
    ]
    for path in (*files, ROOT / "README.md"):
        if path.suffix in (".py", ".md", ".ipynb") and path != Path(__file__):
            assert "nslora.graph.api" not in path.read_text(encoding="utf-8"), path


def snippets(path: Path) -> list[str]:
    """The Python of a README or a notebook."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("notebooks/*.ipynb")), *sorted(ROOT.glob("notebooks/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_readme_and_notebooks_import_public_names_only(page: Path) -> None:
    public = {"nslora", *(f"nslora.{each}" for each in MODULES)}
    for snippet in snippets(page):
        plain = "\n".join(line for line in snippet.splitlines() if not line.lstrip().startswith(("%", "!")))
        for node in ast.walk(ast.parse(plain)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nslora"):
                assert node.module in public, f"{page.name}: from {node.module} import ..."
                module = __import__(node.module, fromlist=["_"])
                for each in node.names:
                    assert each.name in [*module.__all__, *MODULES], f"{page.name}: {node.module}.{each.name}"


def test_adapt_is_the_whole_job_and_gives_a_typed_result(
    own_cache: Path, task: nslora.Task, tiny_folder: Any, tmp_path: Path
) -> None:
    result = nslora.adapt(
        task,
        model=tiny_folder(),
        folder=tmp_path / "run",
        max_rounds=1,
        strategy="lora",
        lora={"epochs": 1, "batch_size": 4},
        device={"device": "cpu", "dtype": "float32", "threads": 1},
    )
    assert isinstance(result, nslora.Result)
    assert isinstance(result.prompt, nslora.Prompt)
    base, after, gain, low, high, n = result.test
    assert (gain, n) == (pytest.approx(after - base), len(task.test))
    assert low <= gain <= high
    assert [each.action for each in result.rounds] == ["lora"]
    assert (result.adapter is None) == (result.report["result"]["adapter"] is None)
    assert result.stop
    assert result.cost["trained_tokens"] > 0
    assert nslora.Run.open(tmp_path / "run").report() == result.report


def test_a_run_takes_a_graph_of_the_users_own_and_wants_it_again(begin: Any) -> None:
    visited: list[int] = []
    workflow = nslora.build_workflow()
    workflow.add_node("notice", lambda state: visited.append(state["round"]))
    workflow.add_edge("finish", "notice")
    run = begin(graph=workflow, max_rounds=1)
    run.adapt()
    assert visited == [1]
    assert run.history()[0].next == ()
    with pytest.raises(RunError, match=r"graph of your own: give it again, as Run.open\(..., graph=...\)"):
        nslora.Run.open(run.folder)
    assert nslora.Run.open(run.folder, graph=workflow).report()
    with pytest.raises(SettingsError, match="is no graph"):
        begin("other", graph="adapt")


def test_build_graph_compiles_with_the_options_of_langgraph() -> None:
    saver = InMemorySaver()
    graph = nslora.build_graph(checkpointer=saver, interrupt_before=["finish"], name="mine")
    assert (graph.checkpointer, graph.interrupt_before_nodes, graph.name) == (saver, ["finish"], "mine")


def shell(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nslora.graph.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ})


def test_exit_statuses_tell_bad_input_from_a_run_that_waits(begin: Any, tmp_path: Path) -> None:
    assert shell("--version", cwd=tmp_path).stdout == f"nslora {nslora.__version__}\n"
    assert shell("run", "no-such-task", cwd=tmp_path).returncode == 1
    assert shell("run", "--no-such-option", cwd=tmp_path).returncode == 1
    run = begin(approve="edits", max_rounds=1, strategy="textgrad")
    assert shell("resume", run.folder, cwd=tmp_path).returncode == 3
    assert "waits for your answer" in shell("question", run.folder, cwd=tmp_path).stdout
    assert shell("resume", run.folder, "--reject", cwd=tmp_path).returncode == 0
    assert json.loads(shell("report", run.folder, "--json", cwd=tmp_path).stdout)["stop"]
    assert json.loads(shell("state", run.folder, cwd=tmp_path).stdout)["status"] == "finished"
    assert "the end" in shell("history", run.folder, cwd=tmp_path).stdout
