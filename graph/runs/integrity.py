"""Are the files of a run whole? Those that its past names, and the records that it appends to."""

from collections.abc import Iterable
from pathlib import Path

from nslora.graph.runs.copy_files import State, candidates_of, evaluations_of, material_of_rounds
from nslora.tools.dataset.remade import read_rows
from nslora.tools.evaluation.records import read_evaluation
from nslora.tools.files import read_json, read_jsonl, read_whole
from nslora.tools.workspace.workspace import Workspace


def check_past(workspace: Workspace, states: Iterable[State], rounds_done: int) -> None:
    """Raise DamagedError if a file that the states of the past name is missing or damaged."""
    candidates = {(each["adapter"], each["prompt"]) for state in states for each in candidates_of(state)}
    for adapter, prompt in sorted(candidates, key=str):
        workspace.prompts.get(prompt)
        read_rows(workspace.remade / f"{prompt}.jsonl")
        if adapter:
            workspace.adapters.path(adapter)
    for key in sorted({key for state in states for key in evaluations_of(state)}):
        read_evaluation(workspace.evaluations.path(key))
    for path in material_of_rounds(workspace.folder, rounds_done):
        read_json(path) if path.suffix == ".json" else read_whole(path)


def check_records(folder: Path) -> None:
    """Raise DamagedError if a record that the run appends to is damaged.

    A last line that is cut off is no damage: a kill leaves it behind.
    """
    read_jsonl(folder / "decisions.jsonl", written_whole=True)
    for name in ("bursts.jsonl", "editor.jsonl"):
        read_jsonl(folder / name)
