"""One door for every call to an editor's chat model: counted, capped, recorded, and never a raw exception.

Transport errors, rate limits and timeouts are retried by the chat model's own settings; what still comes through
becomes one EditFailedError, whose message names the exception and holds no key.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel

from nslora.tools.editor.answer_format import FORMS, Structured, reply_of, salvaged
from nslora.tools.editor.call_log import TOKENS_ARE_EXACT, EditorLog, RecordedCall, request_sha256
from nslora.tools.editor.chat_models import editor_name, names_of
from nslora.tools.editor.policy_editor import PolicyChat
from nslora.tools.editor.redaction import scrub, secrets_of, without
from nslora.tools.editor.wrapped_chat import Chat, adjusted, branches, configured, reply_tokens_of, to_fill_in
from nslora.tools.errors import EditorError, SettingsError

# Rule of thumb for English under today's tokenizers; used only where the provider reports no usage, and marked.
CHARACTERS_PER_TOKEN = 4
# What a chat template adds to each message, for the reservation only.
TOKENS_AROUND_A_MESSAGE = 16
MESSAGE_CHARACTERS = 500
MOST_TOKENS = 1 << 40  # a server that says more counts something else, and checkpoints end at 64 bits
# Chat models of this package that run on this machine: a cap on cost needs no price for them.
FREE = ("rules", "policy")
# Answers of servers that know the protocol but not this request: asked again without structured output.
REFUSED_STATUS = (400, 404, 415, 422, 501)
# What chat models raise that have no structured output after all; a network's own errors are none of these.
UNABLE = (ValueError, TypeError, AttributeError, LookupError, ImportError, NotImplementedError)


@dataclass(frozen=True)
class Usage:
    """What editor calls cost. cost: in the currency of the user's price table; estimated: some tokens were guessed."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    estimated: bool = False
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "estimated"}
        return Usage(**sums, estimated=self.estimated or other.estimated)

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class Caps:
    """The most that an editor may cost in a run; None is no cap. reply_tokens: the longest reply, for reservations.

    A call is reserved before it is made, at no more tokens than its request has bytes plus reply_tokens, so a cap is
    not overshot; the reply's length is bound too where the chat model has a setting for it
    (`tools/editor/wrapped_chat.py`). What the chat model's own settings, or LangChain's with_retry and with_fallbacks
    around it, send again after an error is one call.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    reply_tokens: int = 4096


class EditFailedError(EditorError):
    """An edit that gave nothing usable. usage: what it cost; disabled: the editor will not be called again."""

    def __init__(self, message: str, *, usage: Usage | None = None, disabled: bool = False) -> None:
        super().__init__(message)
        self.usage = usage or Usage()
        self.disabled = disabled


class EditorCalls:
    """Calls of one chat model in one run. spent: their sum, recorded ones included, so that a replay counts the same;
    it can be set, by a run that continues in another process. until: time.monotonic() by which a call must have ended;
    one that may take as long as the slowest so far is not begun where that does not fit. tokens_left: of one edit.
    never_swallow: exceptions of whoever calls, which pass through the chat model (LangGraph's interrupts).

    prices: `{model name: {"input": ..., "output": ...}}` per million tokens.
    Raises SettingsError for a cap on cost without a price for the model, and for structured output that cannot be had.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        log: EditorLog | None = None,
        caps: Caps | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        structured: Structured = "auto",
    ) -> None:
        self.caps = caps or Caps()
        self.spent = self.since_begin = Usage()
        self.until: float | None = None
        self.tokens_left: float | None = None
        self.never_swallow: tuple[type[BaseException], ...] = ()
        self._slowest_s = 0.0
        names = names_of(chat)
        self._chat = configured(chat)
        self._log = log
        self._secrets = secrets_of([chat, self._chat])  # one that was chosen may be made only then
        models = [branch.model for branch in branches(self._chat)]
        has_it = all((model.profile or {}).get("structured_output") for model in models)
        self._insisted = structured == "always"
        self._structured = self._insisted or (structured == "auto" and has_it)
        if self._insisted and to_fill_in(self._chat, next(iter(FORMS.values()))) is None:
            raise SettingsError(
                f"The editor {self.model} cannot fill in a form, or not with the arguments that are "
                "bound to it: set editing.structured to 'auto' or 'never'."
            )
        costs_money = any(model._llm_type not in FREE for model in models)
        self._price = _dearest(names, prices or {}, needed=self.caps.cost is not None and costs_money)

    @property
    def model(self) -> str:
        """The chat model's name for records; that of a policy changes with its adapter."""
        return editor_name(self._chat)

    def use_adapter(self, adapter: str | None) -> None:
        """Where the policy itself is the editor: answer under this adapter from now on."""
        if isinstance(self._chat, PolicyChat):
            self._chat.adapter = adapter

    def begin(self) -> None:
        """Start counting `since_begin` anew."""
        self.since_begin = Usage()

    def ask(
        self, messages: Sequence[BaseMessage], purpose: str, *, form: type[BaseModel] | None = None, warmer: float = 0.0
    ) -> str:
        """The reply's text, from the record where it holds this request, else from the model.

        form: what to fill in where the model has structured output; the reply is then what its fields stand for.
        warmer: added to the model's temperature, where it has one set. Raises EditFailedError.
        """
        request = request_sha256(messages)
        call = self._log.find(request, self.model) if self._log is not None else None
        # LangGraph gives answers to interrupts by their order in the node, which is run again for each: a chat model
        # that asked a person must ask again, or the next one would get this one's answer.
        if call is None or (self._log is not None and self._log.asked_a_person(request)):
            form = form if self._structured else None
            self._reserve(messages, form)
            call = self._call(messages, request, purpose, form, warmer)
            if self._log is not None:
                self._log.append(call)
        self._count(self._usage(call))
        if call.error:
            raise EditFailedError(call.error)
        return call.reply

    def _call(
        self, messages: Sequence[BaseMessage], request: str, purpose: str, form: type[BaseModel] | None, warmer: float
    ) -> RecordedCall:
        started = time.monotonic()
        try:
            message, reply = self._invoke(messages, form, warmer)
        except self.never_swallow:  # an interrupt of a chat model that asks a person
            if self._log is not None:
                self._log.note_person(request)
            raise
        except Exception as error:  # providers raise their own types; whatever it was, this edit has failed
            seconds = time.monotonic() - started
            return RecordedCall(
                request,
                self.model,
                purpose,
                "",
                0,
                0,
                False,
                seconds,
                error=self._told_of(error),
                reply_bound=self._reply_bound,
            )
        counted = tokens_of(message)
        return RecordedCall(
            request_sha256=request,
            model=self.model,
            purpose=purpose,
            reply=without(reply, self._secrets),  # a server may send back what it was sent
            input_tokens=counted[0] if counted else sum(map(_estimate, map(_text, messages))),
            output_tokens=counted[1] if counted else _estimate(reply),
            estimated=counted is None,
            seconds=message.response_metadata.get("recorded_seconds", time.monotonic() - started),
            reply_bound=self._reply_bound,
        )

    def _told_of(self, error: Exception) -> str:
        if isinstance(error, EditorError):
            return str(error)
        try:
            said = scrub(str(error), self._secrets)[:MESSAGE_CHARACTERS].strip()
        except Exception:  # an exception that cannot tell itself is one of the provider's, too
            said = ""
        return f"The editor {self.model} failed with {type(error).__name__}: {said or '(no message)'}"

    def _invoke(
        self, messages: Sequence[BaseMessage], form: type[BaseModel] | None, warmer: float
    ) -> tuple[AIMessage, str]:
        capped = self.caps.tokens is not None or self.caps.cost is not None
        chat = adjusted(self._chat, warmer=warmer, reply_tokens=self.caps.reply_tokens if capped else None)
        if form is not None:
            try:
                if (filling_in := to_fill_in(chat, form)) is not None:
                    return self._filled_in(filling_in, messages)
            except Exception as error:
                # A model, or a server by the name of one, that says it could fill in a form, and cannot.
                unable = isinstance(error, UNABLE) and not self._insisted
                if getattr(error, "status_code", None) not in REFUSED_STATUS and not unable:
                    raise
                self._structured = False
        return self._told(chat.invoke(list(messages)))

    def _filled_in(self, chat: Any, messages: Sequence[BaseMessage]) -> tuple[AIMessage, str]:
        try:
            result = chat.invoke(list(messages))
        except Exception as error:
            if (saved := salvaged(error)) is None:
                raise
            return self._told(saved)
        if not isinstance(result, dict) or "raw" not in result:
            raise EditFailedError(f"The editor {self.model} gave no raw message beside its structured output.")
        message, said = self._told(result["raw"])
        parsed = result.get("parsed")
        reply = reply_of(parsed.model_dump() if isinstance(parsed, BaseModel) else parsed)
        return message, said if reply is None else reply

    def _told(self, message: BaseMessage) -> tuple[AIMessage, str]:
        if not isinstance(message, AIMessage):
            found = type(message).__name__
            raise EditFailedError(f"The editor {self.model} gave a {found} where an AIMessage was wanted.")
        return message, _text(message)

    @property
    def _reply_bound(self) -> int:
        """Tokens that are reserved for what a call brings back."""
        return reply_tokens_of(self._chat, self.caps.reply_tokens)

    def _reserve(self, messages: Sequence[BaseMessage], form: type[BaseModel] | None) -> None:
        if self.until is not None and time.monotonic() + self._slowest_s > self.until:
            raise EditFailedError(f"The run's max_seconds leave no time for another call of the editor {self.model}.")
        reply = self._reply_bound
        texts = [_text(message) for message in messages]
        if form is not None:  # providers count the schema as part of the request
            texts.append(json.dumps(form.model_json_schema()))
        request = sum(len(text.encode("utf-8", "replace")) + TOKENS_AROUND_A_MESSAGE for text in texts)
        if self.tokens_left is not None and self.since_begin.tokens + request + reply > self.tokens_left:
            raise EditFailedError(f"The run's max_tflop leave no room for another call of the editor {self.model}.")
        self._refuse_beyond("calls", self.caps.calls, self.spent.calls, 1)
        self._refuse_beyond("tokens", self.caps.tokens, self.spent.tokens, request + reply)
        self._refuse_beyond("cost", self.caps.cost, self.spent.cost, self._cost(request, reply))

    def _refuse_beyond(self, name: str, cap: float | None, spent: float, wanted: float) -> None:
        if cap is not None and spent + wanted > cap:
            raise EditFailedError(
                f"The editor's cap on {name} ({cap:g}) is reached: {spent:g} are spent and the next call may need "
                f"{wanted:g}; raise the cap to go on editing.",
                disabled=True,
            )

    def _count(self, usage: Usage) -> None:
        self._slowest_s = max(self._slowest_s, usage.seconds)
        self.spent += usage
        self.since_begin += usage

    def _cost(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self._price["input"] + output_tokens * self._price["output"]) / 1e6

    def _usage(self, call: RecordedCall) -> Usage:
        cost = self._cost(call.input_tokens, call.output_tokens)
        return Usage(1, call.input_tokens, call.output_tokens, cost, call.estimated, call.seconds)


def _dearest(models: Sequence[str], prices: Mapping[str, Mapping[str, float]], *, needed: bool) -> dict[str, float]:
    """The highest price among models of which any may answer."""
    found = [_price(model, prices, needed=needed) for model in models]
    return {kind: max(price[kind] for price in found) for kind in ("input", "output")}


def _price(model: str, prices: Mapping[str, Mapping[str, float]], *, needed: bool) -> Mapping[str, float]:
    bare = model.partition(":")[2]  # a replay of a run without calls knows its editor as `openai:...` only
    price = (
        prices.get(model)
        or prices.get(bare)
        or next((value for name, value in prices.items() if bare and name.partition(":")[2] == bare), None)
    )
    if price is None and needed:
        setting = f"--set editing.prices.{bare or model}"
        raise SettingsError(
            f"A cap on the editor's cost needs a price for {model!r}, per million tokens: add "
            f"prices={{{model!r}: {{'input': ..., 'output': ...}}}} to editing, or in the shell {setting}.input=... "
            f"{setting}.output=...."
        )
    if price is not None and not {"input", "output"} <= set(price):
        raise SettingsError(f"The price of {model!r} needs both 'input' and 'output', per million tokens.")
    return price or {"input": 0.0, "output": 0.0}


def tokens_of(message: AIMessage) -> tuple[int, int] | None:
    """Input and output tokens as the provider counted them; None where it gave no two numbers that may be counts.

    No request is empty: a server that counts nothing may say 0, which would lift the caps on tokens and cost.
    """
    usage: Mapping[str, Any] = message.usage_metadata or {}
    went, came = (usage.get(name) for name in ("input_tokens", "output_tokens"))
    if type(went) is not int or type(came) is not int:
        return None
    fewest = 0 if message.response_metadata.get(TOKENS_ARE_EXACT) else 1
    return (went, came) if fewest <= went < MOST_TOKENS and 0 <= came < MOST_TOKENS else None


def _text(message: BaseMessage) -> str:
    return str(message.text)


def _estimate(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
