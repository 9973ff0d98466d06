"""Every call to an editor's chat model: counted, capped, recorded, and with errors of one type.

A call is made again after a failure that passes (rate limit, server error, time-out), unless the chat model does that
itself. If it still fails (key, quota, server, network), an EditorCallError stops the run; a request or a reply that
cannot be used is an EditFailedError. Both messages name the exception and hold no API key.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import ContextThreadPoolExecutor
from pydantic import BaseModel, ValidationError

from nslora.tools.editor import reply_causes, wrapped_chat
from nslora.tools.editor.answer_format import FORMS, Structured, reply_in_error, with_arguments
from nslora.tools.editor.call_failures import GO_ON, in_words, is_call_failure, remedy_for, status_of, wait_before
from nslora.tools.editor.call_log import CHECK, EditorLog, RecordedCall, plain, request_sha256
from nslora.tools.editor.chat_models import editor_name, names_of
from nslora.tools.editor.local_chat import LLAMA_CPP, LocalChat
from nslora.tools.editor.policy_editor import PolicyChat
from nslora.tools.editor.pricing import Caps, Usage, dearest, estimate, tokens_of
from nslora.tools.editor.redaction import scrub, secrets_of, without
from nslora.tools.errors import EditorCallError, EditorError, SettingsError, StoppedError
from nslora.tools.rewards.calling import awaited

TOKENS_AROUND_A_MESSAGE = 16  # what a chat template adds to each message; for the reservation only
# `_llm_type` of the chat models that run on this machine: a cap on cost needs no price for them.
FREE = ("rules", "policy", LLAMA_CPP)
SMALL = ("policy", LLAMA_CPP)  # of these, models that write one short document better than several
# HTTP statuses by which a server refuses structured output; the request is then sent again without it.
REFUSED_STATUS = (400, 404, 415, 422, 501)
# What chat models without structured output raise when it is asked for; network errors are none of these types.
UNABLE = (ValueError, TypeError, AttributeError, LookupError, ImportError, NotImplementedError)

CHECK_REQUEST = (HumanMessage("Reply with OK."),)
AGAIN = "begin again; nothing was begun or written (--no-check-editor begins without asking)"

Messages = Sequence[BaseMessage]
Form = type[BaseModel]  # the schema of structured output
AT_ONCE = 8  # calls
I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741


class EditFailedError(EditorError):
    """An edit that gave no usable prompt.

    Attributes:
        usage: What the edit cost.
        disabled: Whether the editor will not be called again in this run.
        unusable: Whether a request or a reply was unusable, which counts against `editing.patience`.
    """

    def __init__(
        self, message: str, *, usage: Usage | None = None, disabled: bool = False, unusable: bool = True
    ) -> None:
        super().__init__(message)
        self.usage = usage or Usage()
        self.disabled, self.unusable = disabled, unusable


class EditorCalls:
    """The calls of one chat model in one run.

    Attributes:
        role: What the chat model is here, in messages and traces: "editor", or "judge".
        go_on: What to do when the cause of a failed call is removed, as the end of a sentence.
        spent: Usage of all calls, recorded ones included, so that a replay counts the same. A run that continues in
            another process sets it.
        in_this_edit: Usage of the present edit.
        requests: Hashes of the requests of the present edit.
        until: `time.monotonic()` at which the last call must have ended. A call is not begun if the slowest call so
            far would not fit.
        tokens_left: Tokens that the calls of one edit may take together.
        never_swallow: Exceptions that pass through the chat model unchanged, such as LangGraph's interrupts.
        round: The round of the run, for records and traces.
        on_wait: Called with (what, done, total) each second before a call is made again; an exception ends the waiting.

    Args:
        chat: The chat model, possibly inside LangChain's wrappers.
        log: The record to look calls up in and to append to.
        caps: Limits over the whole run.
        prices: `{model name: {"input": ..., "output": ...}}` per million tokens.
        structured: Whether structured output is used.
        transport_retries: How often a call is made again after a failure that passes. A chat model that has retries of
            its own keeps to those.

    Raises:
        SettingsError: There is a cap on cost but no price for the model, or structured output is required and the
            model lacks it.
    """

    def __init__(
        self,
        chat: wrapped_chat.Chat,
        *,
        log: EditorLog | None = None,
        caps: Caps | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        structured: Structured = "auto",
        transport_retries: int = 0,
        role: str = "editor",
    ) -> None:
        self.role, self.go_on = role, GO_ON
        self._turn = threading.Condition()
        self._in_flight: dict[int, tuple[int, float, float]] = {}  # what each thread's call has reserved
        self.caps = caps or Caps()
        self.spent = self.in_this_edit = Usage()
        self.requests: list[str] = []
        self.round = 0
        self.on_wait: Callable[[str, int, int], None] = lambda what, done, total: None
        self.until: float | None = None
        self.tokens_left: float | None = None
        self.never_swallow: tuple[type[BaseException], ...] = ()
        self._slowest_s = 0.0
        names = names_of(chat)
        self._chat = wrapped_chat.configured(chat)
        self._retries = 0 if wrapped_chat.retries_itself(self._chat) else transport_retries
        self._of_thread = threading.local()
        self._async_only = False
        self._log = log
        self._secrets = secrets_of([chat, self._chat])  # `configured` may have created the model, with its key
        models = [branch.model for branch in wrapped_chat.branches(self._chat)]
        has_it = all((model.profile or {}).get("structured_output") for model in models)
        self._required = structured == "always"
        self._structured = self._required or (structured == "auto" and has_it)
        if self._required and wrapped_chat.to_fill_in(self._chat, next(iter(FORMS.values()))) is None:
            raise SettingsError(
                f"The {role} {self.model} has no structured output, or not together with the arguments that are bound "
                "to it: set `structured` to 'auto' or 'never'."
            )
        costs_money = any(model._llm_type not in FREE for model in models)
        needed = self.caps.cost is not None and costs_money
        self._price = dearest(names, prices or {}, needed=needed, settings=reply_causes.SETTINGS[role])

    @property
    def model(self) -> str:
        """The chat model's name for records; a policy's name changes with its adapter."""
        return editor_name(self._chat)

    def begin_edit(self) -> None:
        """Count the calls of another edit from 0."""
        self.in_this_edit, self.requests = Usage(), []

    def use_adapter(self, adapter: str | None) -> None:
        """Answer under this adapter from now on, if the policy itself is the editor."""
        if isinstance(self._chat, PolicyChat):
            self._chat.adapter = adapter

    def ask(self, messages: Messages, purpose: str, *, form: Form | None = None, warmer: float = 0.0) -> str:
        """Get the reply to a request, from the record if it holds one, else from the model.

        Args:
            messages: The request.
            purpose: What the call is for; part of its record, and of the metadata of its trace.
            form: Schema of the reply, if the model has structured output.
            warmer: Added to the model's temperature, if it has one set.

        Returns:
            The reply's text; with structured output the fields as a JSON object.

        Raises:
            EditFailedError: The request was refused, the reply cannot be used, or a cap does not allow the call.
            EditorCallError: The call failed.
        """
        request = request_sha256(messages)
        call = self._log.find(request, self.model, self._reply_bound) if self._log is not None else None
        # LangGraph runs a node again for each answer to an interrupt and hands out the answers by their order. A chat
        # model that asked a person must therefore ask again, or the next interrupt would get this one's answer.
        if call is None or (self._log is not None and self._log.asked_a_person(request)):
            call = self.call(messages, purpose, form=form, warmer=warmer)
        else:
            self.count(call)
        self._of_thread.last = call
        with self._turn:
            self.requests.append(request)
        if problem := call.error or reply_causes.why_final(call):
            raise EditFailedError(problem)
        return call.reply

    def call(self, messages: Messages, purpose: str, *, form: Form | None = None, warmer: float = 0.0) -> RecordedCall:
        """Call the model within the caps, and count the call. Several threads may do so at once.

        Args: as of `ask`. Raises EditFailedError if a cap does not allow the call, EditorCallError if it failed.
        """
        form = form if self._structured else None
        with self._turn:
            while True:
                try:
                    self._reserve(messages, form)
                    break
                except EditFailedError:
                    if not self._in_flight:
                        raise
                    self._turn.wait()  # calls under way may take less than was reserved for them
            self._in_flight[threading.get_ident()] = self._most(messages, form)
        try:
            call = self._settled(messages, purpose, form, warmer)
            self.count(call)
            return call
        finally:
            with self._turn:
                del self._in_flight[threading.get_ident()]
                self._turn.notify_all()

    def count(self, call: RecordedCall) -> None:
        """Add a call to what was spent."""
        cost = self._cost(call.input_tokens, call.output_tokens)
        usage = Usage(1, call.input_tokens, call.output_tokens, cost, call.estimated, call.seconds)
        with self._turn:
            self._slowest_s = max(self._slowest_s, usage.seconds)
            self.spent += usage
            self.in_this_edit += usage

    def each(self, work: Callable[[I], O], items: Sequence[I]) -> list[O]:
        """Do work that asks the model once or more for each item, and return the results in order.

        Calls over a network are made at once, after the first; in turn if the model passes requests on to a person,
        since LangGraph hands out a person's answers in order.
        """
        found = [work(item) for item in items[:1]]
        first = self._last.request_sha256 if self._last is not None else ""
        person = self._log is not None and self._log.asked_a_person(first)
        if person or self.in_process or len(items) < 3:
            return found + [work(item) for item in items[1:]]
        with ContextThreadPoolExecutor(AT_ONCE) as pool:
            return found + list(pool.map(work, items[1:]))

    @property
    def in_process(self) -> bool:
        """Whether no call goes over a network."""
        return all(isinstance(branch.model, LocalChat) for branch in wrapped_chat.branches(self._chat))

    @property
    def is_small(self) -> bool:
        """Whether a model on this machine answers: one short document is asked of it."""
        return any(branch.model._llm_type in SMALL for branch in wrapped_chat.branches(self._chat))

    @property
    def is_rules(self) -> bool:
        """Whether the embedded rule editor answers, which knows TextGrad's own requests alone."""
        return all(branch.model._llm_type == "rules" for branch in wrapped_chat.branches(self._chat))

    @property
    def _last(self) -> RecordedCall | None:
        """The last call of this thread."""
        last: RecordedCall | None = getattr(self._of_thread, "last", None)
        return last

    @property
    def finish_reason(self) -> str:
        """Why the model ended its last reply, in the provider's word; "" if it did not say."""
        return self._last.finish_reason if self._last is not None else ""

    def refuse_cut_off(self, reason: str) -> None:
        """Raise EditFailedError if the last reply, unusable for this reason, was cut off, as the next one would be."""
        if self._last is not None and (why := reply_causes.why_cut_off(self._last)):
            raise EditFailedError(f"{why} What came cannot be used: {reason}")

    @property
    def why_empty(self) -> str:
        """What is known of the last reply, if it had no text; "" if it had."""
        last = self._last
        return reply_causes.why_empty(last) if last is not None and not reply_causes.written(last.reply) else ""

    def check(self) -> RecordedCall | None:
        """Ask for one token, to learn of a wrong key, model or address before anything is spent.

        Returns:
            The call, which is not on record yet; None for an editor that answers in this process, or if a cap does not
            allow a call.

        Raises:
            EditorCallError: The call failed.
        """
        if self.in_process:
            return None
        try:
            self._reserve(CHECK_REQUEST, None)
        except EditFailedError:
            return None
        chat, self._chat = self._chat, wrapped_chat.adjusted(self._chat, warmer=0.0, reply_tokens=1, anyway=True)
        try:
            return self._settled(CHECK_REQUEST, CHECK, None, 0.0)
        finally:
            self._chat = chat

    def close(self) -> None:
        """Stop the servers of GGUF files; the next call starts them again."""
        for branch in wrapped_chat.branches(self._chat):
            if branch.model._llm_type == LLAMA_CPP:
                branch.model.close()

    def record(self, call: RecordedCall) -> None:
        """Put a call on record, if there is one."""
        if self._log is not None:
            self._log.append(call)

    def _settled(self, messages: Messages, purpose: str, form: Form | None, warmer: float) -> RecordedCall:
        """Call, and call again after a failure that passes; each try is put on record. Raises EditorCallError."""
        for tries in itertools.count(1):
            call, failure = self._call(messages, purpose, form, warmer)
            if purpose != CHECK:  # then there is no folder yet
                self.record(call)
            if failure is None:
                return call
            wait_s = wait_before(failure, tries) if tries <= self._retries else None
            if wait_s is None or not self._allows_retry(messages, form, tries, wait_s):
                often = f" It failed at each of {tries} tries." if tries > 1 else ""
                remedy = remedy_for(failure, AGAIN if purpose == CHECK else self.go_on)
                raise EditorCallError(f"{call.error}{often} {remedy}")
            self._wait(wait_s, f"try {tries} failed ({call.status or type(failure).__name__})")
        raise AssertionError("the last try returns or raises")

    def _wait(self, seconds: float, why: str) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.on_wait(f"{why}, the {self.role} is asked again in {math.ceil(left)} s", 0, 1)
            time.sleep(min(left, 1.0))

    def _allows_retry(self, messages: Messages, form: Form | None, failed: int, wait_s: float) -> bool:
        try:
            self._reserve(messages, form, failed=failed, wait_s=wait_s)
        except EditFailedError:
            return False
        return True

    def _call(
        self, messages: Messages, purpose: str, form: Form | None, warmer: float
    ) -> tuple[RecordedCall, Exception | None]:
        """Call once. Returns the call, and the error if the call itself failed."""
        message, failure, error, seconds = AIMessage(""), None, "", None
        counted: tuple[int, int] | None = (0, 0)
        started = time.monotonic()
        config = RunnableConfig(
            run_name=f"{self.role}: {purpose}",
            tags=["nslora", self.role],
            metadata={"purpose": purpose, "round": self.round},
        )
        try:
            message = self._invoke(messages, form, warmer, config)
            counted = tokens_of(message)
            seconds = message.response_metadata.get("recorded_seconds")
        except self.never_swallow:  # an interrupt of a chat model that asks a person
            if self._log is not None:
                self._log.note_person(request_sha256(messages))
            raise
        except StoppedError:
            raise
        except Exception as raised:  # each provider raises its own types
            failure = raised
            error = in_words(raised, f"The {self.role} {self.model}", self._secrets)
        reply = without(_text(message), self._secrets)  # a server may send back what it was sent
        tokens = counted or (sum(estimate(_text(message)) for message in messages), estimate(reply))
        failed = failure is not None and is_call_failure(failure)
        call = RecordedCall(
            request_sha256=request_sha256(messages),
            model=self.model,
            purpose=purpose,
            reply=reply,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            estimated=counted is None,
            seconds=time.monotonic() - started if seconds is None else seconds,
            error=error,
            call_failed=failed,
            reply_bound=self._reply_bound,
            request=[[role, without(text, self._secrets)] for role, text in plain(messages)],
            finish_reason=reply_causes.finish_reason_of(message),
            refusal=scrub(reply_causes.refusal_of(message), self._secrets),
            reasoning_tokens=reply_causes.reasoning_tokens_of(message),
            status=None if failure is None else status_of(failure),
            round=self.round,
        )
        return call, failure if failed else None

    def _invoke(self, messages: Messages, form: Form | None, warmer: float, config: RunnableConfig) -> AIMessage:
        capped = self.caps.tokens is not None or self.caps.cost is not None
        chat = wrapped_chat.adjusted(self._chat, warmer=warmer, reply_tokens=self.caps.reply_tokens if capped else None)
        if form is not None:
            try:
                if (filling_in := wrapped_chat.to_fill_in(chat, form)) is not None:
                    return self._fill_in(filling_in, messages, form, config)
            except Exception as error:
                # The model's profile promised structured output, but the model (or the server behind it) lacks it.
                unable = isinstance(error, UNABLE) and not self._required
                filtered = getattr(error, "code", None) == "content_filter"  # Azure, for what the request holds
                if filtered or (getattr(error, "status_code", None) not in REFUSED_STATUS and not unable):
                    raise
                self._structured = False
        return self._checked(self._answer(chat, messages, config))

    def _fill_in(self, chat: Any, messages: Messages, form: Form, config: RunnableConfig) -> AIMessage:
        """Ask for structured output; the reply is the fields as JSON, or the raw text if they do not fit the schema."""
        try:
            result = self._answer(chat, messages, config)
        except Exception as error:
            if (message := reply_in_error(error)) is None:
                raise
            return message
        if not isinstance(result, dict) or "raw" not in result:
            raise EditFailedError(f"The {self.role} {self.model} gave no raw message beside its structured output.")
        message = self._checked(result["raw"])
        try:
            fields = form.model_validate(result.get("parsed"))
        except ValidationError:
            return with_arguments(message)
        return message.model_copy(update={"content": fields.model_dump_json()})

    def _answer(self, chat: Any, messages: Messages, config: RunnableConfig) -> Any:
        """What the chat model answers; one that is async only is awaited."""
        if not self._async_only:
            try:
                return chat.invoke(list(messages), config)
            except NotImplementedError:
                self._async_only = True
        return awaited(chat.ainvoke(list(messages), ensure_config(config)))

    def _checked(self, message: BaseMessage) -> AIMessage:
        if not isinstance(message, AIMessage):
            found = type(message).__name__
            raise EditFailedError(f"The {self.role} {self.model} returned a {found}; an AIMessage was expected.")
        return message

    @property
    def _reply_bound(self) -> int:
        """Tokens that are reserved for the reply of a call."""
        return wrapped_chat.reply_tokens_of(self._chat, self.caps.reply_tokens)

    def _reserve(self, messages: Messages, form: Form | None, *, failed: int = 0, wait_s: float = 0.0) -> None:
        """Raise EditFailedError if a call does not fit, after this many failed tries and this wait."""
        if self.until is not None and time.monotonic() + wait_s + self._slowest_s > self.until:
            raise EditFailedError(
                f"The run's max_seconds leave no time for another call of the {self.role} {self.model}.", unusable=False
            )
        _, most, _ = self._most(messages, form)
        if self.tokens_left is not None and self.in_this_edit.tokens + most > self.tokens_left:
            raise EditFailedError(
                f"The run's max_tflop leave no room for another call of the editor {self.model}.", unusable=False
            )
        caps, spent, calls = self.caps, self.spent, failed + 1
        checked = self._log.of(CHECK) if self._log is not None else []
        sent, received = (sum(getattr(each, name) for each in checked) for name in ("input_tokens", "output_tokens"))
        with self._turn:
            others = [most for thread, most in self._in_flight.items() if thread != threading.get_ident()]
        under_way = [sum(column) for column in zip((0, 0, 0), *others, strict=True)]
        wanted = [calls * each for each in self._most(messages, form)]
        used = spent.calls, spent.tokens + sent + received, spent.cost + self._cost(sent, received)
        for name, cap, before, beside, needed in zip(
            ("calls", "tokens", "cost"), (caps.calls, caps.tokens, caps.cost), used, under_way, wanted, strict=True
        ):
            if cap is not None and before + beside + needed > cap:
                setting = f"{reply_causes.SETTINGS[self.role]}.max_{name}"
                raise EditFailedError(
                    f"The {self.role}'s cap on {name} ({cap:g}) is reached: {before:g} are spent and the next call may "
                    f"need {needed:g}; go on in a fork with a higher {setting}.",
                    disabled=True,
                )

    def _most(self, messages: Messages, form: Form | None) -> tuple[int, float, float]:
        """The most that a call may take: (1, tokens, cost)."""
        texts = [_text(message) for message in messages]
        if form is not None:  # providers count the schema as part of the request
            texts.append(json.dumps(form.model_json_schema()))
        request = sum(len(text.encode("utf-8", "replace")) + TOKENS_AROUND_A_MESSAGE for text in texts)
        return 1, request + self._reply_bound, self._cost(request, self._reply_bound)

    def _cost(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self._price["input"] + output_tokens * self._price["output"]) / 1e6


def _text(message: BaseMessage) -> str:
    return str(message.text)
