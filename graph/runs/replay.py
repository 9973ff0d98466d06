"""Replays: a run once more from its records, offline, to see that everything comes out the same."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nslora.graph.runs.execution import Answer, Execution
from nslora.graph.runs.fork import Beginning, begin, complete
from nslora.graph.runs.history import line_of, past_of
from nslora.graph.runs.loops import Saver
from nslora.graph.runs.view import RunView, look
from nslora.tools.editor.call_log import EditorLog, RecordedCall, RecordedChat
from nslora.tools.editor.calls import FREE
from nslora.tools.errors import RunError
from nslora.tools.files import read_json
from nslora.tools.policies.recorded import RecordedPolicy
from nslora.tools.policy import Policy
from nslora.tools.workspace.prompt_store import PromptStore
from nslora.tools.workspace.record import POLICY_FILE, RUN_FILE, read_run_file, recorded_settings
from nslora.tools.workspace.workspace import changed_checks

COMPARED = ("action", "kept", "adapter", "prompt", "reward_before", "reward_after")
WORDS = ("reason", "verdict", "error")  # which another version of this package may put otherwise


class ReplayedChat(RecordedChat):
    """The record of an editor under that editor's own name and kind, by which prices and calls are found.

    max_tokens: what was reserved for a reply, so that a cap is reached at the same call. by_place: whether requests
    that are not on record go by their place; an earlier version of nslora put them in other words.
    """

    recorded_name: str
    kind: str = "recorded"
    max_tokens: int | None = None
    by_place: bool = False

    @property
    def _llm_type(self) -> str:
        return self.kind

    def recorded(self, request: str) -> list[RecordedCall]:
        """As in the record; a request of an earlier version goes by its place."""
        place = self.asked.total()
        made = [call for call in self.log.first() if not call.call_failed]
        return super().recorded(request) or [
            call for call in made[place : place + 1] if self.by_place or not call.request
        ]


@dataclass(frozen=True)
class Replay:
    """What a replay found. differences: one sentence each; empty if everything came out the same.

    loaded_model: whether something was not on record, so that the model had to be loaded.
    """

    run: Execution
    rounds: int
    differences: tuple[str, ...]
    seconds: float
    original_seconds: float
    loaded_model: bool

    @property
    def same(self) -> bool:
        return not self.differences


def replay(
    source: Execution,
    folder: str | Path,
    *,
    begin_at: int = 1,
    retrain: bool = False,
    checkpoints: str | Saver | None = None,
) -> Replay:
    """Run `source` again from the decision of round `begin_at` into a new run in `folder`; 0 is the first evaluation.

    The editor's replies come from its record and the policy's from the reply cache; training jobs give the recorded
    adapters, or are trained again with retrain=True, to compare the hashes. A person's answers are given again, and so
    is an action that a fork forced, with which the replay then begins. Nothing is called over the network. A fork or a
    replay is replayed from its own first round on, and a run of other revisions of its checks from 0. A run with
    max_seconds ends after as many rounds as then, since the clock is another one now; an update that the clock had cut
    off in its middle shows as a difference. Raises RunError if the run has not finished.
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
    begin_at = max(begin_at, origin.get("round", 0))  # earlier rounds are its source's, under other settings perhaps
    forced = origin.get("action") if begin_at == origin.get("round") else None
    if changed := changed_checks(source.folder, source.workspace.task):
        begin_at = 0  # so that all is scored by the checks of today
    policy = _recorded_policy(source)
    name = record["settings"]["editor"]
    log = EditorLog(source.folder / "editor.jsonl")
    # Calls of its own rounds before; a fork's record begins with replies alone, whichever round they are of.
    first_own = begin_at <= max(1, origin.get("round", 0))
    made = 0 if origin.get("kind") == "fork" or first_own else old.rounds[begin_at - 2].editor_lines
    first_call = next(iter(log.first(1)), None)
    chat = ReplayedChat(
        log=log,
        asked=Counter(call.request_sha256 for call in log.first(made)),
        recorded_name=first_call.model if first_call else name,
        kind=name if name in FREE else "recorded",
        max_tokens=first_call.reply_bound or None if first_call else None,
        by_place="protocol" not in read_json(source.folder / RUN_FILE)["settings"].get("editing", {}),
    )
    new = begin(
        Beginning(source, Path(folder), begin_at, "replay", reuse_training=not retrain, checkpoints=checkpoints),
        settings,
        editor=chat,
        policy=policy,
        origin={"action": forced},
    )
    if isinstance(policy, RecordedPolicy):
        policy.load = new.workspace.load_policy  # with the adapters of the new run's folder
    complete(new, forced)
    _answer_again(new, old)
    again = look(new.folder)
    first = max(1, begin_at)
    found = differences(old, again, timed=old.settings["max_seconds"] is not None)
    if found and changed:
        found.insert(0, changed)
    if found and _changed_by_hand(source, begin_at):
        found.insert(0, "the state was changed by hand (update_state), which a replay does not repeat")
    return Replay(
        new,
        max(0, len(again.rounds) - first + 1),
        tuple(found),
        time.monotonic() - started,
        sum(each.wall_s for each in old.rounds[first - 1 :]),
        getattr(policy, "loaded", True),
    )


def _changed_by_hand(source: Execution, begin_at: int) -> bool:
    """Whether someone wrote into the state behind the place from which round `begin_at` is decided again."""
    with source.checkpointer() as saver:
        line = line_of(source.compiled(saver), source.config)
    later = len(line) - len(past_of(line, source.folder, begin_at))
    return any((each.metadata or {}).get("source") == "update" for each in line[:later])


def _answer_again(new: Execution, old: RunView) -> None:
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
        answer = _answer_of(then.person, PromptStore(old.folder / "prompts"))


def _answer_of(person: Mapping[str, str], prompts: PromptStore) -> Answer:
    """A person's recorded answer, with the whole prompt if they gave one."""
    return {
        "answer": person["answer"],
        **({"prompt": prompts.get(name).render()} if (name := person.get("prompt")) is not None else {}),
    }


def _recorded_policy(source: Execution) -> Policy:
    """A stand-in for the recorded policy of the original; the policy itself if it is a Python object."""
    facts = source.folder / POLICY_FILE
    if source.workspace.given_policy is not None or not facts.is_file():
        return source.workspace.policy
    settings = source.workspace.settings
    return RecordedPolicy(facts, settings.model, source.workspace.load_policy, settings.thinking)


def differences(old: RunView, new: RunView, *, timed: bool = False) -> list[str]:
    """What came out differently, round by round and in the result.

    Words are compared only if both runs are of one version of this package. timed: the run had a limit in seconds, so
    reasons may name some, which never repeat.
    """
    found = []
    reports = [read_json(each.folder / "result" / "report.json") for each in (old, new)]
    one_version = len({each.get("versions", {}).get("nslora") for each in reports}) == 1
    words = [name for name in WORDS if not (timed and name == "reason")] if one_version else []
    if len(old.rounds) != len(new.rounds):
        found.append(f"{len(new.rounds)} rounds, not {len(old.rounds)}")
    for before, after in zip(old.rounds, new.rounds, strict=False):
        for name in (*COMPARED, *words):
            was, now = getattr(before, name), getattr(after, name)
            if was != now:
                found.append(f"round {before.number}: {name} was {was!r}, is {now!r}")
        if bool(before.error) != bool(after.error) and "error" not in words:
            found.append(f"round {before.number}: error was {before.error!r}, is {after.error!r}")
    for key in ("result", "stop") if one_version and not timed else ("result",):
        was, now = (each.get(key) for each in reports)
        if was != now:
            found.append(f"{key} was {was!r}, is {now!r}")
    return found
