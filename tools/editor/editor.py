"""The symbolic editor: failures and their feedback in, a new prompt document out, by TextGrad through any chat model.

An edit is one transaction. Each of a few failures is critiqued by TextGrad's backward prompt, its optimizer prompt
asks for a new document, and the answer is read, parsed and checked here; what was wrong with it is told to the editor
a bounded number of times. Only a document that passes is handed to TextGrad's own step. Whatever else happens, the
old prompt stays as it was, and the caller gets one EditorError with what the attempt cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from nslora.tools.editor.answer_format import FORMS, Part, Structured, format_rules, read_document
from nslora.tools.editor.call_log import EditorLog
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
from nslora.tools.editor.textual_gradients import CLOSE, OPEN, PromptGraph, answers, neutralise, restore
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.errors import EditorError, PromptError, SettingsError
from nslora.tools.prompt import Prompt, refuse_no_text
from nslora.tools.rewards.score import Graded

__all__ = ["Caps", "Edit", "EditFailedError", "Editor", "Part", "PastEdit", "Usage", "choose_failures"]

PAST_EDITS = 5
# A document longer than this, and than several times the old one, is a runaway reply.
DOCUMENT_CHARACTERS, GROWTH = 20_000, 4
WARMER_PER_CANDIDATE = 0.3


@dataclass(frozen=True)
class PastEdit:
    """An earlier edit in a few words, what it brought in validation reward, and whether it was kept."""

    summary: str
    gain: float
    kept: bool


@dataclass(frozen=True)
class Edit:
    """What an edit proposes: one or more prompts, all different and none the old one, the first the editor's first.

    critiques: TextGrad's textual gradients, in the order of the failures. problems: what was wrong on the way.
    """

    prompts: tuple[Prompt, ...]
    critiques: tuple[str, ...]
    usage: Usage
    problems: tuple[str, ...]


class Editor:
    """Edits prompts by textual gradients through a chat model.

    edit: the part that may change, the others are restored. retries: how often an unusable reply is answered with the
    reason. patience: after that many failed edits in a row no call is made any more. rules: further sentences that the
    editor must follow. Raises SettingsError.
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
        rules: Sequence[str] = (),
        never_swallow: tuple[type[BaseException], ...] = (),
    ) -> None:
        if edit not in get_args(Part):
            raise SettingsError(f"edit={edit!r} is unknown: choose from {', '.join(get_args(Part))}.")
        self.consecutive_failures = 0
        self._calls = EditorCalls(chat, log=log, caps=caps, prices=prices, structured=structured)
        self._part: Part = edit
        self._max_failures, self._retries, self._patience = max_failures, retries, patience
        self._rules = tuple(rules)
        self.never_swallow = never_swallow

    @property
    def name(self) -> str:
        """The editor's name for records; holds no key."""
        return self._calls.model

    @property
    def never_swallow(self) -> tuple[type[BaseException], ...]:
        """Exceptions that pass through the chat model and are no failed edit, such as LangGraph's interrupts."""
        return self._calls.never_swallow

    @never_swallow.setter
    def never_swallow(self, exceptions: tuple[type[BaseException], ...]) -> None:
        self._calls.never_swallow = exceptions

    @property
    def spent(self) -> Usage:
        """All calls so far."""
        return self._calls.spent

    def continue_from(
        self,
        failures: int,
        spent: Usage,
        *,
        adapter: str | None = None,
        until: float | None = None,
        tokens_left: float | None = None,
    ) -> None:
        """Take over where a run stands: failed edits in a row, what its edits cost so far, and the adapter in force.

        With that, caps hold over a run that goes on in another process; the adapter matters where the policy edits.
        until: time.monotonic() after which no call is begun. tokens_left: for the calls of the next edit together,
        where the policy edits and its compute is capped.
        """
        self.consecutive_failures = failures
        self._calls.spent, self._calls.until, self._calls.tokens_left = spent, until, tokens_left
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
        """Propose prompts that mend these failures, the most telling first.

        validate raises PromptError for a prompt that must not be proposed; its reason is told to the editor.
        Raises EditFailedError (an EditorError with .usage and .disabled) where nothing usable came.
        """
        if self.consecutive_failures >= self._patience:
            raise EditFailedError(f"{self._tired()}: it is not called any more in this run.", disabled=True)
        if not failures:
            raise EditFailedError("There is no failure to learn from, so the editor was not called.")
        self._calls.begin()
        try:
            edit = _Attempt(self._calls, self._part, self._retries, prompt, validate).run(
                choose_failures(failures, self._max_failures), [*self._rules, *_past_rules(past)], candidates
            )
        except EditorError as error:
            self.consecutive_failures += 1
            disabled = getattr(error, "disabled", False) or self.consecutive_failures >= self._patience
            after = f" {self._tired()}: it will not be called again in this run." if disabled else ""
            raise EditFailedError(f"{error}{after}", usage=self._calls.since_begin, disabled=disabled) from error
        self.consecutive_failures = 0
        return edit

    def _tired(self) -> str:
        return f"The editor {self.name} failed {self.consecutive_failures} times in a row"


class _Attempt:
    """One transaction: the old prompt goes in, checked new ones come out, or an EditorError."""

    def __init__(
        self, calls: EditorCalls, part: Part, retries: int, prompt: Prompt, validate: Callable[[Prompt], None] | None
    ) -> None:
        self._calls, self._part, self._retries = calls, part, retries
        self._old, self._validate = prompt, validate
        self._problems: list[str] = []

    def run(self, failures: Sequence[Graded], rules: Sequence[str], candidates: int) -> Edit:
        graph = PromptGraph(neutralise(self._old.render()), self._critique)
        critiques = tuple(graph.backward(*failure_texts(failure)) for failure in failures)
        prompts: list[Prompt] = []
        for number in range(1, candidates + 1):
            try:
                prompt = self._step(graph, [*format_rules(self._part), *rules], number, candidates)
            except EditorError as error:
                if not prompts:
                    raise
                self._problems.append(str(error))
                break
            if prompt not in prompts:
                prompts.append(prompt)
        return Edit(tuple(prompts), critiques, self._calls.since_begin, tuple(self._problems))

    def _step(self, graph: PromptGraph, constraints: Sequence[str], number: int, of: int) -> Prompt:
        """TextGrad's step, with an engine that answers only once the document has passed every check."""
        accepted: list[Prompt] = []

        def improve(prompt: str, system_prompt: str) -> str:
            accepted.append(self._ask_for_document(prompt, system_prompt, number))
            return OPEN + neutralise(accepted[-1].render()) + CLOSE

        if number > 1:
            constraints = [
                *constraints,
                f"{ALTERNATIVE_PREFIX} {number} of {of}: take another approach than the obvious one, "
                "for example other or more demonstrations, or instructions in other words.",
            ]
        graph.step(constraints, improve)
        return accepted[-1]

    def _ask_for_document(self, prompt: str, system_prompt: str, number: int) -> Prompt:
        request: list[BaseMessage] = [SystemMessage(system_prompt), HumanMessage(prompt)]
        messages = request
        reason = ""
        for attempt in range(1, self._retries + 2):
            warmer = WARMER_PER_CANDIDATE * (number - 1)
            reply = self._calls.ask(messages, f"improve {number}", form=FORMS[self._part], warmer=warmer)
            try:
                return self._read(reply)
            except PromptError as error:
                reason = str(error)
                self._problems.append(reason)
            correction = (
                f"Your reply {attempt} of {self._retries + 1} cannot be used. {neutralise(reason)} "
                f"Send the whole improved variable again, complete, between {OPEN} and {CLOSE}."
            )
            said = clip(reply, REPLY_CHARACTERS) if reply.strip() else "(an empty reply)"
            messages = [*request, AIMessage(said), HumanMessage(correction)]
        raise EditFailedError(f"The editor gave no usable prompt in {self._retries + 1} replies; the last: {reason}")

    def _critique(self, prompt: str, system_prompt: str) -> str:
        """The engine of the backward pass: its critiques cannot open or close a tag in the next prompt."""
        for attempt in range(self._retries + 1):
            again = f"\n\nYour reply {attempt} was empty: give the feedback in plain words." if attempt else ""
            messages = [SystemMessage(system_prompt), HumanMessage(prompt + again)]
            reply = self._calls.ask(messages, "critique" if not attempt else f"critique, asked {attempt + 1} times")
            critique = _without_thinking(reply).strip()
            if critique:
                return neutralise(clip(critique, CRITIQUE_CHARACTERS))
            self._problems.append("The editor's critique was empty.")
        raise EditFailedError(f"The editor gave no critique in {self._retries + 1} replies: they were empty.")

    def _read(self, reply: str) -> Prompt:
        """The prompt in a reply; PromptError with the reason, as it is told to the editor."""
        blocks = answers(reply)
        if not blocks:
            raise PromptError(f"It has no complete {OPEN} ... {CLOSE} block; it may have been cut off, or refused.")
        # A block without a heading is prose that mentions the tags, unless there is nothing else.
        block = next((b for b in reversed(blocks) if "# " in b), blocks[-1])
        if len(block) > max(DOCUMENT_CHARACTERS, GROWTH * len(self._old.render())):
            raise PromptError(f"The document is far too long ({len(block)} characters): keep it about as it was.")
        new = read_document(restore(block).strip(), self._old, self._part)
        refuse_no_text(new)
        bare = Prompt(template=new.template.strip())
        if new == self._old:
            raise PromptError("The document is the same as before: change it so that the feedback is met.")
        if bare == Prompt() and not new.system.strip() and not new.demonstrations:
            raise PromptError("The document has been emptied: keep or write a system turn or demonstrations.")
        # The record of a reply has this in place of the chat model's own keys.
        if SECRET_MARK in block and SECRET_MARK not in self._old.render():
            raise PromptError("The document holds a key: leave it out.")
        if self._validate is not None:
            self._validate(new)
        return new


def _past_rules(past: Sequence[PastEdit]) -> list[str]:
    rules = [
        f"{PAST_PREFIX} {neutralise(clip(edit.summary, REPLY_CHARACTERS))} It changed the validation reward by "
        f"{edit.gain:+.3f} and was {'kept' if edit.kept else 'dropped'}."
        for edit in past[-PAST_EDITS:]
    ]
    return [*rules, "Build on earlier edits that were kept; do not repeat what was dropped."] if rules else []


def _without_thinking(reply: str) -> str:
    """What follows the last think block, of models that show their reasoning."""
    _, _, answer = reply.rpartition("</think>")
    return answer.partition("<think>")[0]
