"""The record of an editor's calls: `editor.jsonl`, one line per call.

A line holds the request and its hash, the model's name, the purpose of the call, the reply (or the error that came
instead), why the model stopped, token counts and seconds. It holds no API key. A request that is already on record
gets its recorded reply, so a resumed run pays for no call twice and a replay calls no model. A call that failed is made
again on resume.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import Field

from nslora.tools.editor.local_chat import TOKENS_ARE_EXACT, LocalChat, tokens_used
from nslora.tools.editor.reply_causes import why_cut_off, why_empty, why_final, written
from nslora.tools.errors import DamagedError, EditorError

REQUEST_CHARACTERS = 200  # of a request, in an error message
CHECK = "check"  # the purpose of the call by which an editor is asked before a run
PERSONS_FILE = "asked-of-persons.txt"  # hashes of requests, beside editor.jsonl


@dataclass(frozen=True)
class RecordedCall:
    """One call of an editor; the field names are those of a line of `editor.jsonl`.

    Attributes:
        request_sha256: Hash of the request's messages (see `request_sha256`).
        model: The editor's name.
        purpose: What the call was for, such as "critique" or "improve 1".
        reply: The reply's text; the fields as JSON if the model used structured output (before version 0.2: the
            document between TextGrad's tags).
        input_tokens: As the provider counted them, or estimated.
        output_tokens: As the provider counted them, or estimated.
        estimated: Whether the token counts are estimates.
        seconds: Wall-clock time of the call.
        error: The error that came instead of a reply, in one sentence; "" if a reply came.
        call_failed: Whether the call itself failed (key, quota, server, network).
        reply_bound: Tokens that were reserved for the reply; a replay reserves the same.
        request: Role and text of each message of the request (before version 0.2: none).
        finish_reason: Why the model stopped, in the provider's word (see reply_causes.py).
        refusal: What the model said when it refused.
        reasoning_tokens: Output tokens that went into reasoning, as the provider counted them.
        status: HTTP status of the error, if it has one.
        round: The round of the run, from 1; 0 outside of rounds.
    """

    request_sha256: str
    model: str
    purpose: str
    reply: str
    input_tokens: int
    output_tokens: int
    estimated: bool
    seconds: float
    error: str = ""
    call_failed: bool = False
    reply_bound: int = 0
    request: Sequence[Sequence[str]] = ()
    finish_reason: str = ""
    refusal: str = ""
    reasoning_tokens: int = 0
    status: int | None = None
    round: int = 0


def request_sha256(messages: Sequence[BaseMessage]) -> str:
    """Hash the roles and texts of a request's messages; the hash does not depend on the model that is asked."""
    return hashlib.sha256(json.dumps(plain(messages)).encode()).hexdigest()


def plain(messages: Sequence[BaseMessage]) -> list[list[str]]:
    """Role and text of each message."""
    return [[message.type, str(message.text)] for message in messages]


def lines_in(path: Path) -> int:
    """Count the calls in a record; 0 if the file does not exist."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class EditorLog:
    """`editor.jsonl`: read once when opened, appended to after each call.

    A last line that a crash cut off is ignored and overwritten by the next call.

    Raises:
        DamagedError: Another line is not a recorded call.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._persons = self.path.with_name(PERSONS_FILE)
        self._for_persons = set(self._persons.read_text("utf-8").split()) if self._persons.is_file() else set[str]()
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        self._calls: list[RecordedCall] = []
        self._by_request: dict[str, list[RecordedCall]] = {}
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._note(self._parse(line, number))

    def __len__(self) -> int:
        """The number of requests that got a reply."""
        return len({call.request_sha256 for call in self._calls if not call.error})

    def find(self, request: str, model: str, reply_bound: int) -> RecordedCall | None:
        """Find the first reply of this model to the request with this hash; None if there is no such reply.

        A reply that ended early counts only under the bound on replies that it had: a longer one may bring more.
        """
        return next(
            (
                call
                for call in self.calls(request)
                if call.model == model
                and not call.error
                and (call.reply_bound == reply_bound or not (why_final(call) or why_cut_off(call)))
            ),
            None,
        )

    def calls(self, request: str) -> list[RecordedCall]:
        """List the calls that sent the request with this hash, in order, whichever model answered."""
        return self._by_request.get(request, [])

    def first(self, count: int | None = None) -> list[RecordedCall]:
        """List the first `count` calls, or all of them."""
        return self._calls[:count]

    def of(self, purpose: str) -> list[RecordedCall]:
        """List the calls that were made for this purpose."""
        return [call for call in self._calls if call.purpose == purpose]

    def problems(self) -> list[dict[str, Any]]:
        """What failed, how often and why: calls that failed, and replies that came without text, alike ones together.

        Returns:
            {"round", "purpose", "editor", "call_failed", "status", "finish_reason", "why", "times"} for each kind.
        """
        found: Counter[tuple[Any, ...]] = Counter()
        for call in self._calls:
            if call.purpose == CHECK:  # a reply of one token, or the refusal of so short a one
                continue
            why = call.error or why_final(call) or ("" if written(call.reply) else why_empty(call))
            if why:
                found[call.round, call.purpose, call.model, call.call_failed, call.status, call.finish_reason, why] += 1
        names = ("round", "purpose", "editor", "call_failed", "status", "finish_reason", "why")
        return [{**dict(zip(names, kind, strict=True)), "times": times} for kind, times in found.items()]

    def asked_a_person(self, request: str) -> bool:
        """Whether the chat model passed this request on to a person, by an interrupt."""
        return request in self._for_persons

    def note_person(self, request: str) -> None:
        """Record that this request goes to a person; the process that receives the answer reads it."""
        if request not in self._for_persons:
            self._for_persons.add(request)
            with self._lock, self._persons.open("a", encoding="utf-8") as file:
                file.write(f"{request}\n")

    def append(self, call: RecordedCall) -> None:
        """Write a call to disk, before its reply is used.

        A person's answer comes again each time that LangGraph runs its node again; it is written once.

        Raises:
            OSError: The disk is full or the folder is gone.
        """
        if self.asked_a_person(call.request_sha256) and any(
            (known.model, known.reply) == (call.model, call.reply) for known in self.calls(call.request_sha256)
        ):
            return
        with self._lock, self.path.open("a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read() not in (b"", b"\n"):  # a crash cut the last line off
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write((json.dumps(asdict(call)) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            self._note(call)

    def _note(self, call: RecordedCall) -> None:
        self._calls.append(call)
        self._by_request.setdefault(call.request_sha256, []).append(call)

    def _parse(self, line: bytes, number: int) -> RecordedCall:
        try:
            return RecordedCall(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DamagedError(
                f"{self.path}:{number}: this line is not a recorded editor call ({error!r}). Delete the line; the "
                "request is sent again when it is needed."
            ) from error


class RecordedChat(LocalChat):
    """A chat model that replays an editor's record, errors included, and calls no other model.

    Calls that failed and stopped the run are left out: the run was resumed, and the request sent again.

    The n-th time that a request is sent, it gets the n-th recorded outcome; after the last one, the last again.
    """

    log: EditorLog
    asked: Counter[str] = Field(default_factory=Counter)

    def __init__(self, log: EditorLog | str | Path, **fields: Any) -> None:
        super().__init__(**{"log": log if isinstance(log, EditorLog) else EditorLog(log), **fields})

    @property
    def _llm_type(self) -> str:
        return "recorded"

    def reply_to(self, messages: list[BaseMessage], stop: Sequence[str]) -> AIMessage:
        """Answer from the record.

        Raises:
            EditorError: The record has no such request (the message quotes its beginning), or the call had failed.
        """
        request = request_sha256(messages)
        calls = self.recorded(request)
        if not calls:
            shown = str(messages[-1].text)[:REQUEST_CHARACTERS]
            raise EditorError(
                f"{self.log.path} holds no reply to this request, which is new: {shown!r}. To record it, run once "
                "with the editor itself and this file as its log."
            )
        call = calls[min(self.asked[request], len(calls) - 1)]
        self.asked[request] += 1
        if call.error:
            raise EditorError(call.error)
        told = {"recorded_seconds": call.seconds, "finish_reason": call.finish_reason}
        message = AIMessage(call.reply, response_metadata=told, additional_kwargs={"refusal": call.refusal})
        if not call.estimated:
            message.response_metadata[TOKENS_ARE_EXACT] = True
            message.usage_metadata = tokens_used(call.input_tokens, call.output_tokens, call.reasoning_tokens)
        return message

    def recorded(self, request: str) -> list[RecordedCall]:
        """The outcomes on record for the request with this hash, in order."""
        return [call for call in self.log.calls(request) if not call.call_failed]
