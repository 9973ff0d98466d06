"""The notebook of results works from the records that are in the repository."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def test_the_notebook_shows_the_tables_of_the_records() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "results.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    told = "".join(output.get("text", "") for output in outputs)
    shown = "".join(output["data"].get("text/markdown", "") for output in outputs if "data" in output)
    assert "cells on record" in told
    assert "mean regret to each task's best fixed order" in told
    assert "| `neurosymbolic` |" in shown
    assert "| TRL LoRA SFT |" in shown
    assert any("image/svg+xml" in output["data"] for output in outputs if "data" in output)
