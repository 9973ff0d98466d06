"""The calls of a judge: none for a judgement that is known, several at once otherwise.

A judgement is known by its content: the judge's name, the messages of the request (question, references, reply,
rubric) and the number of the sample. It is looked for in memory, in the record of the run, in that of the run that this
one was forked from or replays, and in the cache that all runs share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import BoundedSemaphore, Lock, RLock
from typing import TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import BaseModel

from nslora.tools.editor.call_log import EditorLog, RecordedCall, RecordedChat, request_sha256
from nslora.tools.editor.calls import EditFailedError, EditorCalls
from nslora.tools.editor.pricing import Caps, Usage
from nslora.tools.editor.reply_causes import why_cut_off, why_empty, why_final, written
from nslora.tools.editor.settings import JudgeSettings
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.errors import EditorCallError, UnreachableRewardError
from nslora.tools.files import sha256_of_json
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.inference.weights import cache_folder

T = TypeVar("T")
RECORD, BEFORE = "judge.jsonl", "judge-before.jsonl"  # of a run; of the run that it was forked or is replayed from
KNOWN = ", known"  # ends the purpose of a recorded call that this run did not pay for
QUOTED_CHARACTERS = 2000  # of an unusable reply, when the judge is asked again


@dataclass(frozen=True)
class JudgePlace:
    """Where judges work.

    Attributes:
        settings: Caps and prices.
        folder: Of the run, for its records; None before there is one.
        cache: Judgements that runs share.
        offline: Whether the model must not be asked, as in a replay.
    """

    settings: JudgeSettings = field(default_factory=JudgeSettings)
    folder: Path | None = None
    cache: ReplyCache | None = None
    offline: bool = False

    @cached_property
    def record(self) -> EditorLog | None:
        """The judgements that the run has used."""
        return None if self.folder is None else EditorLog(self.folder / RECORD)

    @cached_property
    def before(self) -> EditorLog | None:
        """The judgements of the run that it came from."""
        return None if self.folder is None else EditorLog(self.folder / BEFORE)


_NOWHERE = JudgePlace()  # until somebody says where, or asks


class _Absent(RecordedChat):
    """Stands for the chat model in a replay, which needs its name alone."""

    recorded_name: str


class JudgeCalls:
    """The calls of one judge. Several threads may use it.

    Args:
        name: Of the check; begins the purpose of its recorded calls.
        model: The judge's name.
        connect: Makes the chat model, when one is to be asked.
        at_once: Most calls under way.
        shared: Whether the name says which model answers, so that other runs may use its judgements.
    """

    def __init__(
        self, name: str, model: str, connect: Callable[[], Chat], at_once: int, *, shared: bool = True
    ) -> None:
        self._name, self.model, self._connect, self._is_shared = name, model, connect, shared
        self._calls: EditorCalls | None = None
        self._slots, self._lock = BoundedSemaphore(at_once), RLock()
        self._locks: dict[tuple[str, int], Lock] = {}
        self._known: dict[tuple[str, int], RecordedCall] = {}
        self._unrecorded: list[RecordedCall] = []  # paid before the run had a folder
        self._place = _NOWHERE

    def work_in(self, place: JudgePlace) -> None:
        """Take caps, records and caches from here from now on."""
        if place is self._place:
            return
        self._place, self._known, self._calls = place, {}, None
        if place.record is not None:
            waiting, self._unrecorded = self._unrecorded, []
            for call in waiting:
                place.record.append(call)

    @property
    def calls(self) -> EditorCalls:
        """The chat model with its caps. Raises SettingsError if a cap on cost has no price."""
        with self._lock:
            if self._calls is None:
                self._calls = self._connected(self._shared())
            return self._calls

    def _connected(self, place: JudgePlace) -> EditorCalls:
        settings = place.settings
        chat: Chat
        if place.offline and place.before is not None:
            known = next(
                (call.model for call in place.before.first() if call.purpose.startswith(self._name)), self.model
            )
            chat = _Absent(log=place.before, recorded_name=known)
        else:
            chat = self._connect()
        calls = EditorCalls(
            chat,
            caps=Caps(settings.max_calls, settings.max_tokens, settings.max_cost, settings.reply_tokens),
            prices={name: price.model_dump() for name, price in settings.prices.items()},
            structured=settings.structured,
            transport_retries=settings.transport_retries,
            role="judge",
        )
        if place.folder is None:
            calls.go_on = "ask again"
        for call in self._used():
            if not call.purpose.endswith(KNOWN):  # else another run has paid for it
                calls.count(call)
        return calls

    def _used(self) -> list[RecordedCall]:
        """The calls that this run has used, failed ones too."""
        calls = self._unrecorded if self._place.record is None else self._place.record.first()
        return [each for each in calls if each.purpose.startswith(f"{self._name}, ")]

    @property
    def spent(self) -> Usage:
        """What the run has paid for this judge."""
        return self.calls.spent

    def judged(self) -> tuple[int, int]:
        """How many replies were judged in this run, and on how many of them the samples differed."""
        found: dict[str, set[str]] = {}
        for call in self._used() if self._place.record is not None else ():
            if not call.error:
                found.setdefault(call.request_sha256, set()).add(call.purpose.removesuffix(KNOWN))
        return len(found), sum(len(samples) > 2 for samples in found.values())

    def is_known(self, messages: Sequence[BaseMessage]) -> bool:
        """Whether the first sample of this judgement is known."""
        self._shared()
        return self._find(request_sha256(messages), 1) is not None

    def verdict(
        self, messages: Sequence[BaseMessage], form: type[BaseModel], read: Callable[[str], T], sample: int
    ) -> T:
        """Get a judgement. A reply that `read` refuses with a ValueError is asked for once more.

        Raises:
            UnreachableRewardError: The call failed, a cap does not allow it, or no reply could be used.
        """
        self._shared()
        key = request_sha256(messages), sample
        with self._lock:
            lock = self._locks.setdefault(key, Lock())
        new: list[RecordedCall] = []
        with lock:
            try:
                return self._verdict(messages, form, read, sample, new)
            except BaseException as failure:
                for call in new:  # paid, but no judgement: the same request is sent again when it is needed
                    self._write(replace(call, error=call.error or f"No verdict came of it: {failure}"))
                raise

    def _verdict(
        self,
        messages: Sequence[BaseMessage],
        form: type[BaseModel],
        read: Callable[[str], T],
        sample: int,
        new: list[RecordedCall],
    ) -> T:
        first, problem = list(messages), ""
        asked: list[RecordedCall] = []
        for _ in range(2):
            call = self._find(request_sha256(messages), sample)
            if call is None:
                call = self._asked(messages, form, sample)
                new.append(call)
            asked.append(call)
            if why := call.error or why_final(call, "judge"):
                raise self._failed(why)
            try:
                verdict = read(written(call.reply))
            except ValueError as error:
                problem = str(error) if written(call.reply) else why_empty(call, "judge")
                if cut := why_cut_off(call, "judge"):
                    raise self._failed(cut) from error
                again = f"This cannot be used: {error} Answer again, with the JSON object alone."
                messages = [*first, AIMessage(call.reply[:QUOTED_CHARACTERS] or "(nothing)"), HumanMessage(again)]
            else:
                for each in asked:
                    self._remember(each, sample, paid=each in new)
                new.clear()
                return verdict
        raise self._failed(f"The judge {self.model} gave no usable verdict, asked twice: {problem}")

    def _asked(self, messages: Sequence[BaseMessage], form: type[BaseModel], sample: int) -> RecordedCall:
        if self._place.offline:
            raise self._failed(
                f"The records of {self._place.folder} hold no such judgement of the judge {self.model}, and a replay "
                "asks nobody."
            )
        try:
            with self._slots:
                return self.calls.call(messages, f"{self._name}, sample {sample}", form=form)
        except EditFailedError as error:
            raise self._failed(str(error)) from error
        except EditorCallError as error:
            raise UnreachableRewardError(str(error)) from error

    def _failed(self, why: str) -> UnreachableRewardError:
        return UnreachableRewardError(f"{why.rstrip('.')}. The reply was given no score.")

    def _shared(self) -> JudgePlace:
        """Where it works; outside of runs without caps, with the cache that all runs share."""
        with self._lock:
            if self._place is _NOWHERE:
                self.work_in(JudgePlace(cache=ReplyCache(cache_folder() / "replies.sqlite")))
            return self._place

    def _find(self, request: str, sample: int) -> RecordedCall | None:
        if (request, sample) in self._known:
            return self._known[request, sample]
        for log in (self._place.record, self._place.before):
            for call in log.calls(request) if log is not None else ():
                if call.error or call.purpose.removesuffix(KNOWN) != f"{self._name}, sample {sample}":
                    continue
                if log is self._place.record:
                    self._known[request, sample] = call
                else:  # it counts as it counted there
                    if paid := not call.purpose.endswith(KNOWN):
                        self.calls.count(call)
                    self._remember(call, sample, paid=paid)
                return call
        key = self._key(request, sample)
        found = self._cache.find([key]) if self._cache is not None else {}
        return RecordedCall(**json.loads(found[key])) if found else None

    @property
    def _cache(self) -> ReplyCache | None:
        return self._place.cache if self._is_shared else None

    def _key(self, request: str, sample: int) -> str:
        return sha256_of_json(["judgement", self.model, request, sample])

    def _remember(self, call: RecordedCall, sample: int, *, paid: bool) -> None:
        """Keep a judgement that is not in this run's record yet."""
        key = call.request_sha256, sample
        if key in self._known:
            return
        self._known[key] = call
        purpose = f"{self._name}, sample {sample}"
        self._write(replace(call, purpose=purpose if paid else purpose + KNOWN))
        if self._cache is not None:
            self._cache.add({self._key(*key): json.dumps(asdict(call))})

    def _write(self, call: RecordedCall) -> None:
        if self._place.record is not None:
            self._place.record.append(call)
        elif not call.purpose.endswith(KNOWN):
            self._unrecorded.append(call)
