"""Adapters on disk."""

from nslora.graph.runs.run import Run


def test_tensors_are_kept_as_safetensors_alone(finished: Run) -> None:
    suffixes = {path.suffix for path in finished.folder.rglob("*") if path.is_file() and path.name[0] != "."}
    assert suffixes <= {".csv", ".json", ".jsonl", ".md", ".safetensors", ".sqlite", ".sqlite-shm", ".sqlite-wal"}
