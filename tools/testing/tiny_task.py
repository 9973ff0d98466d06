"""A tiny task for tests: who keeps which place; a tiny random model memorises the answers in seconds."""

import json
from pathlib import Path

_WORDS = "mill bridge lamp ferry anchor tower garden market harbour quarry chapel forge"
PLACES = tuple(_WORDS.split())
KEEPERS = ("ok", "no", "ab")
SPLITS = {
    "train": "Who keeps the {place}?",
    "validation": "The {place} is kept by whom?",
    "test": "Name the keeper of the {place}.",
}
TASK = """name: keepers
data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}
max_new_tokens: 12
reward:
  combine: mean
  checks:
    - {name: fact, check: contains}
    - {name: style, check: regex, pattern: '- \\S[^\\n]*', form: '- {reply}', wanted: 'one line that begins with "- "'}
"""


def write_tiny_task(folder: Path, rows: int = 8) -> Path:
    """Write task.yaml and its three splits.

    Args:
        folder: Where to write; created if needed.
        rows: Questions per split, up to 12.

    Returns:
        The folder, for `load_task`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")
    for split, question in SPLITS.items():
        lines = [
            json.dumps({"question": question.format(place=PLACES[i]), "reference": KEEPERS[i % len(KEEPERS)]})
            for i in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
