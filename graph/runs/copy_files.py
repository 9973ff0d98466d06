"""The files of a run's past, linked into the folder of a fork or a replay.

Only what the past names is taken: a prompt or a row of remade data that came later would change what the fork sees.
Content-addressed files are hard-linked (they are never written again), records that are appended to are copied.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from nslora.tools.editor.judge_calls import BEFORE, RECORD
from nslora.tools.files import read_json, write_jsonl
from nslora.tools.training.adapters import ADAPTER_NAME
from nslora.tools.workspace.judges import AGREEMENT_FILE

State = Mapping[str, Any]


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file or folder of files as `source`; what is not there is left out."""
    if source.is_dir():
        for each in sorted(source.iterdir()):
            _link(each, target / each.name)
        return
    if not source.is_file() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def candidates_of(state: State) -> list[Mapping[str, Any]]:
    """Every candidate that the state names."""
    found = [state.get("start"), state.get("kept"), state.get("best")]
    found += [(state.get("proposal") or {}).get("candidate")]
    found += [record["candidate"] for record in state.get("rounds", ())]
    return [each for each in found if each]


def _prompts_of_people(state: State) -> list[str]:
    """Prompts that a person gave, also if nothing came of them."""
    answers = [record.get("person") or {} for record in state.get("rounds", ())]
    return [answer["prompt"] for answer in answers if "prompt" in answer]


def evaluations_of(state: State) -> set[str]:
    """Keys of every evaluation that the state names."""
    keys = {each["key"] for name in ("start_measured", "kept_measured", "measured") if (each := state.get(name))}
    return keys | {record["evaluation"] for record in state.get("rounds", ()) if record["evaluation"]}


def copy_past(source: Path, target: Path, states: Iterable[State], rounds_done: int) -> None:
    """Bring into `target` what the `states` of the past name, and the material of its finished rounds."""
    names = [f"{path.parent.name}/{path.name}" for path in material_of_rounds(source, rounds_done)]
    names += ["policy.json"] if rounds_done >= 0 else []  # before, the new run may have another model
    prompts = [each for name in names if name.startswith("edits/") for each in _candidates_in(source / name)]
    for state in states:
        candidates = candidates_of(state)
        prompts += [*(each["prompt"] for each in candidates), *_prompts_of_people(state)]
        names += [f"remade/{each['prompt']}.jsonl" for each in candidates]
        names += [f"adapters/{each['adapter']}" for each in candidates if each["adapter"]]
        names += [f"evaluations/{key}.jsonl" for key in evaluations_of(state)]
    for name in dict.fromkeys([*names, *(f"prompts/{each}.md" for each in prompts)]):
        _link(source / name, target / name)


def material_of_rounds(run: Path, rounds_done: int) -> list[Path]:
    """What the first rounds of a run chose to learn from, and what its edits saw and said."""
    return [
        path
        for folder in ("material", "edits")
        for path in sorted((run / folder).glob("*"))
        if (number := path.name.partition("-")[0]).isdigit() and int(number) <= rounds_done
    ]


def _candidates_in(edit: Path) -> list[str]:
    """Hashes of the prompts that an edit proposed."""
    names: list[str] = read_json(edit).get("candidates", [])
    return names


def copy_records(source: Path, target: Path, *, editor: bool, trained: bool) -> None:
    """Copy the records of editor calls, training jobs and the run's own replies, so that nothing is paid for twice.

    Calls that failed are left out: a fork makes them again, and its own replay must not meet them first.
    """
    if (source / "replies.sqlite").is_file():
        with (
            closing(sqlite3.connect(source / "replies.sqlite")) as old,
            closing(sqlite3.connect(target / "replies.sqlite")) as new,
        ):
            old.backup(new)
    judged = [each for name in (BEFORE, RECORD) if (source / name).is_file() for each in _whole_lines(source / name)]
    if judged:
        write_jsonl(target / BEFORE, judged)
    if (source / AGREEMENT_FILE).is_file():
        _link(source / AGREEMENT_FILE, target / AGREEMENT_FILE)
    if editor and (source / "editor.jsonl").is_file():
        write_jsonl(
            target / "editor.jsonl",
            [
                each
                for each in _whole_lines(source / "editor.jsonl")
                if isinstance(each, dict) and not each.get("error")
            ],
        )
    if trained and (source / "bursts.jsonl").is_file():
        records = _whole_lines(source / "bursts.jsonl")
        write_jsonl(target / "bursts.jsonl", records)
        for record in records:
            if ADAPTER_NAME.fullmatch(str(record.get("adapter"))):
                _link(source / "adapters" / record["adapter"], target / "adapters" / record["adapter"])


def _whole_lines(path: Path) -> list[Any]:
    """The lines of a record that can be read: what a damaged one held is trained, or asked for, again."""
    found = []
    for line in path.read_bytes().decode("utf-8", "replace").split("\n"):
        with suppress(ValueError):
            found += [json.loads(line)] if line else []
    return found
