"""The record of an editor's calls, `editor.jsonl`: one line per call, read back instead of calling again.

A line holds the request's hash, the model's name, what the call was for, the reply, tokens and seconds, or the error
that came instead of a reply; never a key, never the request itself. The same request always gets the same recorded
reply, so a resumed run pays for no call twice (one that failed is made again), and a replay calls nobody.
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

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict, Field

from nslora.tools.errors import DamagedError, EditorError

SHOWN_CHARACTERS = 200
PERSONS_FILE = "asked-of-persons.txt"  # hashes of requests, beside the record
# In the metadata of a reply whose counts are believed even where they are 0: of the rule editor, or of a record.
TOKENS_ARE_EXACT = "tokens_are_exact"


@dataclass(frozen=True)
class RecordedCall:
    """One call: request_sha256 over the messages, tokens as the provider counted them (or estimated), seconds.

    error: what came instead of a reply, in one sentence; "" where a reply came. reply_bound: the longest reply that was
    reserved, in tokens; a replay reserves the same.
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
    reply_bound: int = 0


def request_sha256(messages: Sequence[BaseMessage]) -> str:
    """The name of a request: the hash of its messages' roles and texts, whichever model they go to."""
    plain = [[message.type, str(message.text)] for message in messages]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def lines_in(path: Path) -> int:
    """The number of calls that a record holds."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class EditorLog:
    """`editor.jsonl`, read once when opened and appended to after each call.

    A last line that a crash cut off is left out. Raises DamagedError for any other line that is no call.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._cut_off = False
        self._calls: dict[str, list[RecordedCall]] = {}
        self._in_order: list[RecordedCall] = []
        self._persons = self.path.with_name(PERSONS_FILE)
        self._for_persons = set(self._persons.read_text("utf-8").split()) if self._persons.is_file() else set[str]()
        for call in self._read():
            self._remember(call)

    def __len__(self) -> int:
        """The number of requests that got a reply."""
        return sum(any(not call.error for call in calls) for calls in self._calls.values())

    def find(self, request: str, model: str) -> RecordedCall | None:
        """The first reply of this model to the request with this hash."""
        return next((call for call in self.calls(request) if call.model == model and not call.error), None)

    def calls(self, request: str) -> Sequence[RecordedCall]:
        """What came of each time that this request was sent, to whichever model."""
        return tuple(self._calls.get(request, ()))

    def first(self, count: int) -> Sequence[RecordedCall]:
        """The first so many calls."""
        return self._in_order[:count]

    def asked_a_person(self, request: str) -> bool:
        """Whether the chat model put this request to a person, by an interrupt."""
        return request in self._for_persons

    def note_person(self, request: str) -> None:
        """Remember that this request is put to a person, also in the process that brings the answer."""
        if request not in self._for_persons:
            self._for_persons.add(request)
            with self._lock, self._persons.open("a", encoding="utf-8") as file:
                file.write(f"{request}\n")

    def _remember(self, call: RecordedCall) -> None:
        self._calls.setdefault(call.request_sha256, []).append(call)
        self._in_order.append(call)

    def append(self, call: RecordedCall) -> None:
        """Write the call to the disk before anything is made of its reply.

        A person's answer comes again whenever its node is run again: it is written once. Raises OSError where the disk
        is full or the folder is gone.
        """
        if self.asked_a_person(call.request_sha256) and any(
            (known.model, known.reply) == (call.model, call.reply) for known in self.calls(call.request_sha256)
        ):
            return
        line = (json.dumps(asdict(call)) + "\n").encode()
        with self._lock, self.path.open("a+b") as file:
            if self._cut_off:  # or the new line would continue the one that a crash cut off
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                self._cut_off = False
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._remember(call)

    def _read(self) -> list[RecordedCall]:
        if not self.path.exists():
            return []
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        self._cut_off = bool(text) and not text.endswith("\n")
        lines = text.split("\n")
        calls = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                calls.append(_call(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise DamagedError(
                        f"{self.path}:{number}: this line is no call of an editor ({error!r}): take it "
                        "out, and what it held is asked again."
                    ) from error
        return calls


class RecordedChat(BaseChatModel):
    """A chat model that answers from an editor's record and calls nobody, errors included.

    A request that was sent several times gets what came of each time, in that order, and then the last again. Raises
    EditorError at a request that the record does not hold, showing how that request begins.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    log: EditorLog
    asked: Counter[str] = Field(default_factory=Counter)

    def __init__(self, log: EditorLog | str | Path, **fields: Any) -> None:
        super().__init__(**{"log": log if isinstance(log, EditorLog) else EditorLog(log), **fields})

    @property
    def _llm_type(self) -> str:
        return "recorded"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = request_sha256(messages)
        calls = self.log.calls(request)
        if not calls:
            shown = str(messages[-1].text)[:SHOWN_CHARACTERS]
            raise EditorError(
                f"{self.log.path} holds no reply to this request, which is new: {shown!r}. To record it, run once "
                "with the editor itself and this file as its log."
            )
        call = calls[min(self.asked[request], len(calls) - 1)]
        self.asked[request] += 1
        if call.error:
            raise EditorError(call.error)
        return ChatResult(generations=[ChatGeneration(message=call_message(call))])


def call_message(call: RecordedCall) -> AIMessage:
    """The reply of a recorded call as the message that the chat model gave."""
    recorded = {"recorded_seconds": call.seconds}
    if call.estimated:
        return AIMessage(call.reply, response_metadata=recorded)
    total = call.input_tokens + call.output_tokens
    usage = UsageMetadata(input_tokens=call.input_tokens, output_tokens=call.output_tokens, total_tokens=total)
    return AIMessage(call.reply, usage_metadata=usage, response_metadata={**recorded, TOKENS_ARE_EXACT: True})


def _call(row: dict[str, Any]) -> RecordedCall:
    return RecordedCall(
        request_sha256=str(row["request_sha256"]),
        model=str(row["model"]),
        purpose=str(row["purpose"]),
        reply=str(row["reply"]),
        input_tokens=int(row["input_tokens"]),
        output_tokens=int(row["output_tokens"]),
        estimated=bool(row["estimated"]),
        seconds=float(row["seconds"]),
        error=str(row.get("error", "")),
        reply_bound=int(row.get("reply_bound", 0)),
    )
