"""The symbolic editor: failures and their feedback in, new prompt documents out, by TextGrad through any chat model.

An edit is one transaction. The editor criticises each of a few failures (TextGrad's backward request) and then writes
a new document (TextGrad's optimizer request). The document is parsed and checked here. If it is unusable, the editor
is told the reason and asked again, a bounded number of times. On any failure the old prompt stays in force, and the
caller gets one EditFailedError with what the attempt cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from nslora.tools.editor.answer_format import FORMS, Part, Structured, format_rules, is_object, read_prompt
from nslora.tools.editor.call_log import EditorLog, RecordedCall
from nslora.tools.editor.calls import Caps, EditFailedError, EditorCalls, Usage
from nslora.tools.editor.failures_view import (
    ALTERNATIVE_PREFIX,
    CRITIQUE_CHARACTERS,
    MAX_FAILURES,
    PAST_PREFIX,
    REPLY_CHARACTERS,
    choose_failures,
    clip,
    failure_texts,
)
from nslora.tools.editor.redaction import SECRET_MARK
from nslora.tools.editor.reply_causes import written
from nslora.tools.editor.textual_gradients import CLOSE, OPEN, Request, critique_request, improve_request, neutralise
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.errors import EditorError, PromptError, SettingsError
from nslora.tools.prompt import Prompt, refuse_no_text
from nslora.tools.rewards.score import Graded

__all__ = ["Caps", "Edit", "EditFailedError", "Editor", "Part", "PastEdit", "Usage", "choose_failures"]

PAST_EDITS = 5
WARMER_PER_CANDIDATE = 0.3  # added to the temperature for each further candidate


@dataclass(frozen=True)
class PastEdit:
    """An earlier edit: its summary, its gain in mean validation reward, and whether it was kept."""

    summary: str
    gain: float
    kept: bool


@dataclass(frozen=True)
class Edit:
    """What an edit proposes.

    Attributes:
        prompts: One or more candidates, in the order in which the editor wrote them; all different, none the old one.
        critiques: TextGrad's textual gradients, one per failure shown.
        usage: What the edit cost.
        problems: What was wrong with replies on the way.
    """

    prompts: tuple[Prompt, ...]
    critiques: tuple[str, ...]
    usage: Usage
    problems: tuple[str, ...]


class Editor:
    """Edits prompts by textual gradients, through a chat model.

    Attributes:
        consecutive_failures: Number of edits that failed in a row.

    Args:
        chat: The chat model, possibly inside LangChain's wrappers.
        log: The record of its calls.
        edit: The part of the prompt that may change; other parts are kept.
        max_failures: Failures that are shown in one edit.
        retries: How often an unusable reply is sent back with the reason.
        patience: After this many failed edits in a row the editor is not called any more.
        caps: The most that all calls may cost.
        prices: `{model name: {"input": ..., "output": ...}}` per million tokens.
        structured: Whether structured output is used.
        transport_retries: How often a call is made again after a failure that passes.
        rules: Further sentences that the editor must follow.

    Raises:
        SettingsError: `edit` is unknown, or as in EditorCalls.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        log: EditorLog | None = None,
        edit: Part = "document",
        max_failures: int = MAX_FAILURES,
        retries: int = 2,
        patience: int = 3,
        caps: Caps | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        structured: Structured = "auto",
        transport_retries: int = 0,
        rules: Sequence[str] = (),
    ) -> None:
        if edit not in get_args(Part):
            raise SettingsError(f"edit={edit!r} is unknown: choose from {', '.join(get_args(Part))}.")
        self.consecutive_failures = 0
        self._calls = EditorCalls(
            chat, log=log, caps=caps, prices=prices, structured=structured, transport_retries=transport_retries
        )
        self._part: Part = edit
        self._max_failures, self._retries, self._patience = max_failures, retries, patience
        self._rules = tuple(rules)

    @property
    def name(self) -> str:
        """The editor's name for records; it holds no API key."""
        return self._calls.model

    def check(self) -> RecordedCall | None:
        """Ask for one token, as `EditorCalls.check` does."""
        return self._calls.check()

    def record(self, call: RecordedCall) -> None:
        """Put a call of `check` on record, now that the run has a folder."""
        self._calls.record(call)

    @property
    def spent(self) -> Usage:
        """What all calls so far have cost."""
        return self._calls.spent

    def continue_from(
        self,
        failures: int,
        spent: Usage,
        *,
        adapter: str | None = None,
        until: float | None = None,
        tokens_left: float | None = None,
        never_swallow: tuple[type[BaseException], ...] = (),
        round_number: int = 0,
        on_wait: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        """Set the state of the run before an edit, so that caps hold over all processes of a run.

        Args:
            failures: Failed edits in a row.
            spent: What the run's edits have cost so far.
            adapter: Hash of the kept adapter; used if the policy is the editor.
            until: `time.monotonic()` after which no call is begun.
            tokens_left: Tokens for the next edit, if the policy is the editor and its compute is capped.
            never_swallow: Exceptions that pass through the chat model and are not failed edits, such as LangGraph's
                interrupts.
            round_number: The round, from 1, for records and traces.
            on_wait: Called with (what, done, total) each second before a call that failed is made again.
        """
        self.consecutive_failures = failures
        self._calls.round, self._calls.on_wait = round_number, on_wait
        self._calls.spent, self._calls.until, self._calls.tokens_left = spent, until, tokens_left
        self._calls.never_swallow = never_swallow
        self._calls.use_adapter(adapter)

    def edit(
        self,
        prompt: Prompt,
        failures: Sequence[Graded],
        *,
        past: Sequence[PastEdit] = (),
        validate: Callable[[Prompt], None] | None = None,
        candidates: int = 1,
    ) -> Edit:
        """Propose prompts that repair these failures.

        Args:
            prompt: The prompt in force.
            failures: Failing rollouts, the most important first.
            past: Earlier edits, for the editor to build on.
            validate: Raises PromptError for a prompt that must not be proposed; the editor is told its message.
            candidates: Number of prompts to ask for; duplicates are dropped.

        Raises:
            EditFailedError: The editor gave no usable prompt.
        """
        if self.consecutive_failures >= self._patience:
            raise EditFailedError(f"{self._failed_often()}: it is not called any more in this run.", disabled=True)
        if not failures:
            raise EditFailedError("There is no failure to learn from, so the editor was not called.")
        self._calls.in_this_edit = Usage()
        constraints = [*format_rules(self._part, prompt.sections), *self._rules, *_past_rules(past)]
        try:
            attempt = _Attempt(self._calls, self._part, self._retries, prompt, validate)
            edit = attempt.run(choose_failures(failures, self._max_failures), constraints, candidates)
        except EditorError as error:
            self.consecutive_failures += getattr(error, "unusable", True)
            disabled = getattr(error, "disabled", False) or self.consecutive_failures >= self._patience
            after = f" {self._failed_often()}: it will not be called again in this run." if disabled else ""
            raise EditFailedError(f"{error}{after}", usage=self._calls.in_this_edit, disabled=disabled) from error
        self.consecutive_failures = 0
        return edit

    def _failed_often(self) -> str:
        return f"The editor {self.name} failed {self.consecutive_failures} times in a row"


@dataclass
class _Attempt:
    """One edit as a transaction: it ends with checked new prompts or raises an EditorError."""

    calls: EditorCalls
    part: Part
    retries: int
    old: Prompt
    validate: Callable[[Prompt], None] | None
    problems: list[str] = field(default_factory=list)

    def run(self, failures: Sequence[Graded], constraints: Sequence[str], candidates: int) -> Edit:
        document = neutralise(self.old.render())
        shown = [failure_texts(failure) for failure in failures]
        critiques = [self._criticise(critique_request(document, failure)) for failure in shown]
        prompts: list[Prompt] = []
        for number in range(1, candidates + 1):
            other = (
                f"{ALTERNATIVE_PREFIX} {number} of {candidates}: take another approach than the obvious one, "
                "for example other or more demonstrations, or instructions in other words."
            )
            request = improve_request(document, shown, critiques, [*constraints, *([other] if number > 1 else [])])
            try:
                prompt = self._improve(request, number)
            except EditorError as error:
                if not prompts:
                    raise
                self.problems.append(str(error))
                break
            if prompt not in prompts:
                prompts.append(prompt)
        return Edit(tuple(prompts), tuple(critiques), self.calls.in_this_edit, tuple(self.problems))

    def _criticise(self, request: Request) -> str:
        """Ask for a critique; it is neutralised, so it can neither open nor close a tag in the next request."""
        for attempt in range(self.retries + 1):
            again = f"\n\nYour reply {attempt} was empty: give the feedback in plain words." if attempt else ""
            messages = [SystemMessage(request.system_prompt), HumanMessage(request.prompt + again)]
            reply = self.calls.ask(messages, f"critique, asked {attempt + 1} times" if attempt else "critique")
            if critique := written(reply):
                return neutralise(clip(critique, CRITIQUE_CHARACTERS))
            self.problems.append(self.calls.why_empty or "The editor's critique was empty.")
        raise EditFailedError(f"The editor gave no critique in {self.retries + 1} replies. {self.problems[-1]}")

    def _improve(self, request: Request, number: int) -> Prompt:
        """Ask for candidate `number` until a reply passes all checks."""
        first: list[BaseMessage] = [SystemMessage(request.system_prompt), HumanMessage(request.prompt)]
        messages, reason = first, ""
        for attempt in range(1, self.retries + 2):
            warmer = WARMER_PER_CANDIDATE * (number - 1)
            reply = self.calls.ask(messages, f"improve {number}", form=FORMS[self.part], warmer=warmer)
            try:
                return self._accepted(reply)
            except PromptError as error:
                reason = str(error)
                self.problems.append(self.calls.why_empty or reason)
                self.calls.refuse_cut_off(reason)
            place = "in these fields" if is_object(reply) else f"between {OPEN} and {CLOSE}"
            correction = (
                f"Your reply {attempt} of {self.retries + 1} cannot be used. {neutralise(reason)} "
                f"Send the whole improved variable again, complete, {place}."
            )
            quoted = clip(reply, REPLY_CHARACTERS) if reply.strip() else "(an empty reply)"
            messages = [*first, AIMessage(quoted), HumanMessage(correction)]
        last = self.problems[-1]
        raise EditFailedError(f"The editor gave no usable prompt in {self.retries + 1} replies; the last: {last}")

    def _accepted(self, reply: str) -> Prompt:
        """The prompt in a reply. Raises PromptError, with the reason in words for the editor."""
        new = read_prompt(reply, self.old, self.part)
        refuse_no_text(new)
        if new == self.old:
            raise PromptError("The document is the same as before: change it so that the feedback is met.")
        if not new.system.strip() and not new.demonstrations and new.template.strip() == Prompt().template:
            raise PromptError("The document has been emptied: keep or write a system turn or demonstrations.")
        # Recorded replies have this mark in place of the chat model's own keys.
        if SECRET_MARK in new.render() and SECRET_MARK not in self.old.render():
            raise PromptError("The document holds a key: leave it out.")
        if self.validate is not None:
            self.validate(new)
        return new


def _past_rules(past: Sequence[PastEdit]) -> list[str]:
    rules = [
        f"{PAST_PREFIX} {neutralise(clip(edit.summary, REPLY_CHARACTERS))} It changed the validation reward by "
        f"{edit.gain:+.3f} and was {'kept' if edit.kept else 'dropped'}."
        for edit in past[-PAST_EDITS:]
    ]
    return [*rules, "Build on earlier edits that were kept; do not repeat what was dropped."] if rules else []
