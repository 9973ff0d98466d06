"""Replays: a run once more from its records, offline, to see that everything comes out the same."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.graph.build import build_graph
from nslora.graph.runs.fork import Beginning, begin, complete
from nslora.graph.runs.history import checkpoint_before, line_of
from nslora.graph.runs.run import Answer, Run
from nslora.graph.runs.view import RunView, look
from nslora.tools.editor.call_log import EditorLog, RecordedChat
from nslora.tools.editor.calls import FREE
from nslora.tools.errors import RunError
from nslora.tools.files import read_json
from nslora.tools.policies.recorded import RecordedPolicy
from nslora.tools.policy import Policy
from nslora.tools.workspace.prompt_store import PromptStore
from nslora.tools.workspace.record import POLICY_FILE, read_run_file, recorded_settings

COMPARED = ("action", "reason", "kept", "verdict", "error", "adapter", "prompt", "reward_before", "reward_after")


class ReplayedChat(RecordedChat):
    """The record of an editor under that editor's own name and kind, by which prices and calls are found.

    max_tokens: what was reserved for a reply, so that a cap is reached at the same call.
    """

    recorded_name: str
    kind: str = "recorded"
    max_tokens: int | None = None

    @property
    def _llm_type(self) -> str:
        return self.kind


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

    The editor's replies come from its record and the policy's from the reply cache; training jobs give the recorded
    adapters, or are trained again with retrain=True, to compare the hashes. A person's answers are given again, and so
    is an action that a fork forced, with which the replay then begins. Nothing is called over the network. A fork is
    replayed from its own first round on. A run with max_seconds ends after as many rounds as then, since the clock is
    another one now; an update that the clock had cut off in its middle shows as a difference. Raises RunError where the
    run has not finished.
    """
    started = time.monotonic()
    source.report()
    old = look(source.folder)
    if begin_at > len(old.rounds) + 1:
        raise RunError(f"{source.folder} never came to round {begin_at}: it has {len(old.rounds)}.")
    record = read_run_file(source.folder)
    settings = recorded_settings(source.folder, record)
    if settings.max_seconds is not None:
        settings = settings.model_copy(update={"max_seconds": None, "max_rounds": len(old.rounds)})
    # Filled-in fields are on record as text, which is read without structured output.
    settings = settings.model_copy(update={"editing": settings.editing.model_copy(update={"structured": "never"})})
    origin = source.origin or {}
    if origin.get("kind") == "fork" or origin.get("action"):
        begin_at = max(begin_at, origin["round"])  # earlier rounds are its source's, under other settings perhaps
    forced = origin.get("action") if begin_at == origin.get("round") else None
    policy = recorded_policy(source)
    name = record["settings"]["editor"]
    log = EditorLog(source.folder / "editor.jsonl")
    # Calls of the rounds before; a fork's record begins with replies alone, whichever round they are of.
    made = 0 if origin.get("kind") == "fork" or begin_at < 2 else old.rounds[begin_at - 2].editor_lines
    first_call = next(iter(log.first(1)), None)
    chat = ReplayedChat(
        log=log,
        asked=Counter(call.request_sha256 for call in log.first(made)),
        recorded_name=first_call.model if first_call else name,
        kind=name if name in FREE else "recorded",
        max_tokens=first_call.reply_bound or None if first_call else None,
    )
    new = begin(
        Beginning(source, Path(folder), begin_at, "replay", reuse_training=not retrain),
        settings,
        editor=chat,
        policy=policy,
        origin={"action": forced},
    )
    if isinstance(policy, RecordedPolicy):
        policy.load = new.workspace.load_policy  # with the adapters of the new run's folder
    complete(new, forced)
    answer_again(new, old)
    again = look(new.folder)
    first = max(1, begin_at)
    found = differences(old, again, timed=old.settings["max_seconds"] is not None)
    if found and changed_by_hand(source, begin_at):
        found.insert(0, "the state was changed by hand (update_state), which a replay does not repeat")
    return Replay(
        new,
        max(0, len(again.rounds) - first + 1),
        tuple(found),
        time.monotonic() - started,
        sum(each.wall_s for each in old.rounds[first - 1 :]),
        getattr(policy, "loaded", True),
    )


def changed_by_hand(source: Run, begin_at: int) -> bool:
    """Whether someone wrote into the state behind the place from which round `begin_at` is decided again."""
    with source.checkpointer() as saver:
        graph = build_graph(saver)
        past = {
            each.config["configurable"]["checkpoint_id"]
            for each in line_of(graph, checkpoint_before(graph, source.config, source.folder, begin_at).config)
        }
        return any(
            (each.metadata or {}).get("source") == "update"
            for each in line_of(graph, source.config)
            if each.config["configurable"]["checkpoint_id"] not in past
        )


def answer_again(new: Run, old: RunView) -> None:
    """Run to the end, answering what waits for a person as it was answered then."""
    answer: Answer | None = None
    while True:
        for _ in new.stream(answer=answer):
            pass
        asked = new.question()
        if asked is None:
            return
        then = next((each for each in old.rounds if each.number == asked["round"]), None)
        if then is None or then.person is None or asked["problem"]:
            raise RunError(
                f"The replay in {new.folder} asks something in round {asked['round']} that the run was "
                "never asked, so it has gone another way before."
            )
        answer = answer_of(then.person, PromptStore(old.folder / "prompts"))


def answer_of(person: Mapping[str, str], prompts: PromptStore) -> Answer:
    """What a person said, as it was said: with the whole prompt where they gave one of their own."""
    return {
        "answer": person["answer"],
        **({"prompt": prompts.get(name).render()} if (name := person.get("prompt")) is not None else {}),
    }


def recorded_policy(source: Run) -> Policy:
    """The policy of the original: a stand-in where it is on record, else (a Python object) itself."""
    facts = source.folder / POLICY_FILE
    if source.workspace.given_policy is not None or not facts.is_file():
        return source.workspace.policy
    return RecordedPolicy(facts, source.workspace.settings.model, source.workspace.load_policy)


def differences(old: RunView, new: RunView, *, timed: bool = False) -> list[str]:
    """What came out otherwise, round by round and in the result.

    timed: the run had a limit in seconds, so reasons may name some, which never repeat.
    """
    found = []
    compared = [name for name in COMPARED if not (timed and name == "reason")]
    if len(old.rounds) != len(new.rounds):
        found.append(f"{len(new.rounds)} rounds, not {len(old.rounds)}")
    for before, after in zip(old.rounds, new.rounds, strict=False):
        for name in compared:
            was, now = getattr(before, name), getattr(after, name)
            if was != now:
                found.append(f"round {before.number}: {name} was {was!r}, is {now!r}")
    for key in ("result",) if timed else ("result", "stop"):
        was, now = result_of(old, key), result_of(new, key)
        if was != now:
            found.append(f"{key} was {was!r}, is {now!r}")
    return found


def result_of(view: RunView, key: str) -> Any:
    path = view.folder / "result" / "report.json"
    return read_json(path)[key] if path.is_file() else None
