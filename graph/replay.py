"""Replays: a run once more from its records, offline, to see that everything comes out the same."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.graph.fork import Beginning, begin
from nslora.graph.inspect import RunView, look
from nslora.graph.run import Run
from nslora.tools.editor_log import EditorLog, RecordedChat
from nslora.tools.files import read_json
from nslora.tools.lab import POLICY_FILE, read_run_file, recorded_settings
from nslora.tools.policy import Policy
from nslora.tools.recorded_policy import RecordedPolicy
from nslora.tools.run_copy import copy_records

COMPARED = ("action", "reason", "kept", "verdict", "error", "adapter", "prompt", "reward_before", "reward_after")


class ReplayedChat(RecordedChat):
    """The record of an editor under that editor's own name, by which prices and calls are found."""

    model_name: str = ""


@dataclass(frozen=True)
class Replay:
    """What a replay found. differences: one sentence each, none where everything came out the same.

    loaded_model: whether something was not on record, so that the model had to be loaded.
    """

    run: Run
    rounds: int
    differences: tuple[str, ...]
    seconds: float
    original_seconds: float
    loaded_model: bool

    @property
    def same(self) -> bool:
        return not self.differences


def replay(source: Run, folder: str | Path, *, begin_at: int = 1, retrain: bool = False) -> Replay:
    """Run `source` again from the decision of round `begin_at` into a new run in `folder`; 0 is the first evaluation.

    The editor's replies come from its record and the policy's from the reply cache; bursts give the recorded adapters,
    or are trained again with retrain=True, to compare the hashes. Nothing is called over the network.
    """
    started = time.monotonic()
    record = read_run_file(source.folder)
    settings = recorded_settings(source.folder, record).model_copy(update={"approve": "nothing"})
    policy = recorded_policy(source)
    chat = ReplayedChat(log=EditorLog(source.folder / "editor.jsonl"),
                        model_name=record["settings"]["editor"].rpartition(":")[2])
    new = begin(Beginning(source, Path(folder), begin_at, "replay"), settings, editor=chat, policy=policy)
    copy_records(source.folder, new.folder, editor=False, bursts=not retrain)
    if isinstance(policy, RecordedPolicy):
        policy.load = new.lab.load_policy       # with the adapters of the new run's folder
    new.adapt()
    old, again = look(source.folder), look(new.folder)
    first = max(1, begin_at)
    return Replay(new, len(again.rounds) - first + 1, tuple(differences(old, again)), time.monotonic() - started,
                  sum(each.wall_s for each in old.rounds[first - 1:]), getattr(policy, "loaded", True))


def recorded_policy(source: Run) -> Policy:
    """The policy of the original: a stand-in where it is on record, else (a Python object) itself."""
    facts = source.folder / POLICY_FILE
    if source.lab.given_policy is not None or not facts.is_file():
        return source.lab.policy
    return RecordedPolicy(facts, source.lab.settings.model, source.lab.load_policy)


def differences(old: RunView, new: RunView) -> list[str]:
    """What came out otherwise, round by round and in the result."""
    found = []
    if len(old.rounds) != len(new.rounds):
        found.append(f"{len(new.rounds)} rounds, not {len(old.rounds)}")
    for before, after in zip(old.rounds, new.rounds, strict=False):
        for name in COMPARED:
            was, now = getattr(before, name), getattr(after, name)
            if was != now:
                found.append(f"round {before.number}: {name} was {was!r}, is {now!r}")
    for key in ("result", "stop"):
        was, now = result_of(old, key), result_of(new, key)
        if was != now:
            found.append(f"{key} was {was!r}, is {now!r}")
    return found


def result_of(view: RunView, key: str) -> Any:
    path = view.folder / "result" / "report.json"
    return read_json(path)[key] if path.is_file() else None
