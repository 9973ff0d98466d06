"""The symbolic editor: failures and their feedback in, new prompt documents out, by TextGrad through any chat model.

An edit is one transaction, by one of two protocols. `reflect`: one request tells the editor all that is known
(briefing.py), and one reply holds its analysis, which is the textual gradient, and one or several documents.
`textgrad`: the editor criticises each of a few failures (TextGrad's backward request) and then writes a new document
(TextGrad's optimizer request). Documents are parsed and checked here. If none is usable, the editor is told the reason
and asked again, a bounded number of times. On any failure the old prompt stays in force, and the caller gets one
EditFailedError with what the attempt cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, get_args

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from nslora.tools.editor.answer_format import (
    FORMS,
    Part,
    Structured,
    format_rules,
    is_object,
    layout_rules,
    read_prompt,
)
from nslora.tools.editor.briefing import (
    INPUT_TOKENS,
    LEAST_TOKENS,
    MOST_ROWS,
    ROWS_FOR_SMALL,
    Briefing,
    Situation,
    brief,
    tokens_of_text,
)
from nslora.tools.editor.call_log import EditorLog, RecordedCall
from nslora.tools.editor.calls import EditFailedError, EditorCalls, Form
from nslora.tools.editor.contradictions import ContradictionError, refuse_contradictions
from nslora.tools.editor.failures_view import (
    ALTERNATIVE_PREFIX,
    CRITIQUE_CHARACTERS,
    MAX_FAILURES,
    PAST_PREFIX,
    REPLY_CHARACTERS,
    PastEdit,
    choose_failures,
    clip,
    failure_texts,
    right_reply_of,
)
from nslora.tools.editor.pricing import Caps, Usage
from nslora.tools.editor.redaction import SECRET_MARK
from nslora.tools.editor.reflection import Reflected, answer_format, read_reflection, reflection_form
from nslora.tools.editor.reply_causes import written
from nslora.tools.editor.settings import Protocol
from nslora.tools.editor.textual_gradients import (
    CLOSE,
    OPEN,
    REWARD_SAYS,
    Request,
    critique_request,
    improve_request,
    neutralise,
    step_request,
)
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.errors import EditorError, PromptError, SettingsError
from nslora.tools.prompt import Prompt, refuse_no_text
from nslora.tools.rewards.score import Graded

__all__ = ["Caps", "Edit", "EditFailedError", "Editor", "Part", "PastEdit", "Usage", "choose_failures"]

PAST_EDITS = 5
ANSWER_AGAIN = "Send the whole answer again, complete, in the form that was asked for."
WARMER_PER_CANDIDATE = 0.3  # added to the temperature for each further candidate


T = TypeVar("T")


@dataclass(frozen=True)
class Edit:
    """What an edit proposes.

    Attributes:
        prompts: One or more candidates, in the order in which the editor wrote them; all different, none the old one.
        critiques: Textual gradients: the analysis, or TextGrad's critiques, one per failure shown.
        usage: What the edit cost.
        problems: What was wrong with replies on the way.
        rows: Ids of the rows that the editor was shown, in their order; "" for a demonstration of the old prompt.
        requests: Hashes of the requests.
    """

    prompts: tuple[Prompt, ...]
    critiques: tuple[str, ...]
    usage: Usage
    problems: tuple[str, ...]
    rows: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()


class Editor:
    """Edits prompts by textual gradients, through a chat model.

    Attributes:
        consecutive_failures: Number of edits that failed in a row.
        protocol: How the editor is asked.

    Args:
        chat: The chat model, possibly inside LangChain's wrappers.
        log: The record of its calls.
        protocol: How the editor is asked. The embedded rule editor is always asked by `textgrad`.
        edit: The part of the prompt that may change; other parts are kept.
        max_failures: Failures that are shown in one edit; None: 20, if they fit, or 4 by `textgrad`.
        max_input_tokens: Most tokens of a request by `reflect`, as estimated; None: 2,000, or 1,000 beside the
            document and its rules if that is more.
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
        protocol: Protocol = "textgrad",
        edit: Part = "document",
        max_failures: int | None = None,
        max_input_tokens: int | None = None,
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
        self.protocol: Protocol = "textgrad" if self._calls.is_rules else protocol
        self._max_failures, self._retries, self._patience = max_failures, retries, patience
        self._max_input_tokens = max_input_tokens
        self._rules = tuple(rules)

    @property
    def name(self) -> str:
        """The editor's name for records; it holds no API key."""
        return self._calls.model

    def close(self) -> None:
        """Stop the server of a GGUF file; the next call starts it again."""
        self._calls.close()

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
        situation: Situation | None = None,
    ) -> Edit:
        """Propose prompts that repair these failures.

        Args:
            prompt: The prompt in force.
            failures: Failing rollouts, the most important first.
            past: Earlier updates, for the editor to build on.
            validate: Raises PromptError for a prompt that must not be proposed; the editor is told its message.
            candidates: Number of prompts to ask for, at most; duplicates are dropped.
            situation: What else an editor is told by `reflect`.

        Raises:
            EditFailedError: The editor gave no usable prompt.
        """
        if self.consecutive_failures >= self._patience:
            raise EditFailedError(f"{self._failed_often()}: it is not called any more in this run.", disabled=True)
        if not failures:
            raise EditFailedError("There is no failure to learn from, so the editor was not called.")
        self._calls.begin_edit()
        attempt = _Attempt(self._calls, self._part, self._retries, prompt, validate)
        try:
            if self.protocol == "reflect":
                edit = self._reflect(attempt, failures, past, situation or Situation(), candidates)
            else:
                constraints = [*format_rules(self._part, prompt.sections), *self._rules, *_past_rules(past)]
                edit = attempt.run(
                    choose_failures(failures, self._max_failures or MAX_FAILURES), constraints, candidates
                )
        except EditorError as error:
            self.consecutive_failures += getattr(error, "unusable", True)
            disabled = getattr(error, "disabled", False) or self.consecutive_failures >= self._patience
            after = f" {self._failed_often()}: it will not be called again in this run." if disabled else ""
            raise EditFailedError(f"{error}{after}", usage=self._calls.in_this_edit, disabled=disabled) from error
        self.consecutive_failures = 0
        return edit

    def _reflect(
        self,
        attempt: _Attempt,
        failures: Sequence[Graded],
        past: Sequence[PastEdit],
        situation: Situation,
        candidates: int,
    ) -> Edit:
        """One request with all that is known, within the limit."""
        document = neutralise(attempt.old.render())
        constraints = [*layout_rules(self._part, situation.columns, attempt.old.sections), *self._rules]
        may_write = any(right_reply_of(each) is None for each in failures)
        small = self._calls.is_small
        documents, short = (1, not may_write) if small else (candidates, False)
        answer = answer_format(self._part, documents, may_write=may_write, short=short, listing=True)
        fixed = sum(map(tokens_of_text, step_request(document, "", constraints, answer)))
        limit = self._max_input_tokens or max(INPUT_TOKENS, fixed + LEAST_TOKENS)
        if limit - fixed < LEAST_TOKENS // 4:
            raise EditFailedError(
                f"The document and its rules take {fixed} of the {limit} tokens of a request to the editor, which "
                "leaves no room for rows: raise editing.max_input_tokens.",
                disabled=True,
            )
        briefing = brief(
            attempt.old,
            failures,
            situation,
            past,
            room=limit - fixed,
            most_rows=self._max_failures or (ROWS_FOR_SMALL if small else MOST_ROWS),
            small=small,
        )
        ask = {"may_write": may_write, "short": short, "listing": bool(briefing.answers)}
        answer = answer_format(self._part, documents, **ask)
        request = step_request(document, briefing.context, constraints, answer)
        form = reflection_form(self._part, documents, **ask)
        return attempt.reflect(request, briefing, candidates, form)

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
    shown: Sequence[Graded] = ()

    def reflect(self, request: Request, briefing: Briefing, candidates: int, form: Form) -> Edit:
        """Ask once for an analysis and documents."""
        self.shown = briefing.failures
        read = partial(self._reflected, briefing=briefing, most=candidates)
        found = self._asked(request, "reflect", form, read, lambda _: ANSWER_AGAIN)
        rows = [row.id for row in briefing.rows]
        return self._edit(found.prompts, list(filter(None, [found.analysis])), rows)

    def _edit(self, prompts: Sequence[Prompt], critiques: Sequence[str], rows: Sequence[str]) -> Edit:
        calls = self.calls
        return Edit(
            tuple(prompts),
            tuple(critiques),
            calls.in_this_edit,
            tuple(self.problems),
            tuple(rows),
            tuple(calls.requests),
        )

    def _reflected(self, reply: str, briefing: Briefing, most: int) -> Reflected:
        """The usable documents of a reply, at most so many. Raises PromptError if there is none.

        Of a document with a rule that contradicts the reward, the demonstrations stand alone.
        """
        reason = self.calls.finish_reason
        found = read_reflection(reply, self.old, self.part, briefing.rows, reason, briefing.answers)
        prompts, faults = list[Prompt](), list(found.faults)
        for prompt in found.prompts[:most]:
            try:
                self._check(prompt)
            except PromptError as error:
                faults.append(str(error))
                prompt = replace(self.old, demonstrations=prompt.demonstrations)
                if not (isinstance(error, ContradictionError) and prompt.demonstrations and self._is_usable(prompt)):
                    continue
            prompts += [prompt] if prompt not in prompts else []
        if not prompts:
            raise PromptError(" ".join(dict.fromkeys(faults)))
        self.problems += faults
        return replace(found, prompts=(*prompts, *self._parts_alone(prompts, most)))

    def _parts_alone(self, prompts: Sequence[Prompt], most: int) -> Iterator[Prompt]:
        """Of one document that changes several parts: its demonstrations alone and its system turn alone.

        They cost no call, and add fewer tokens to a row. The choice of rows is what small models do best, and their
        system turns can spoil it (records/editor.jsonl).
        """
        if len(prompts) > 1:
            return
        (new,), old, given = prompts, self.old, most - 1
        for alone in (replace(old, demonstrations=new.demonstrations), replace(old, system=new.system)):
            if given and alone not in (new, old) and self._is_usable(alone):
                given -= 1
                yield alone

    def _is_usable(self, prompt: Prompt) -> bool:
        """Whether a part alone passes the checks: a text that must stay may have moved to the other part."""
        try:
            self._check(prompt)
        except PromptError:
            return False
        return True

    def run(self, failures: Sequence[Graded], constraints: Sequence[str], candidates: int) -> Edit:
        """Ask for a critique of each failure, and then for documents."""
        self.shown = failures
        document = neutralise(self.old.render())
        shown = [failure_texts(failure) for failure in failures]
        critiques = self.calls.each(self._criticise, [critique_request(document, failure) for failure in shown])
        gradients = [f"{said}\n{REWARD_SAYS}{row.feedback}" for said, row in zip(critiques, shown, strict=True)]
        prompts: list[Prompt] = []
        for number in range(1, candidates + 1):
            other = (
                f"{ALTERNATIVE_PREFIX} {number} of {candidates}: take another approach than the obvious one, "
                "for example other or more demonstrations, or instructions in other words."
            )
            request = improve_request(document, shown, gradients, [*constraints, *([other] if number > 1 else [])])
            try:
                prompt = self._improve(request, number)
            except EditorError as error:
                if not prompts:
                    raise
                self.problems.append(str(error))
                break
            if prompt not in prompts:
                prompts.append(prompt)
        return self._edit(prompts, critiques, [each.example.id for each in failures])

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
        warmer = WARMER_PER_CANDIDATE * (number - 1)
        return self._asked(request, f"improve {number}", FORMS[self.part], self._accepted, _send_again, warmer)

    def _asked(
        self,
        request: Request,
        purpose: str,
        form: Form,
        read: Callable[[str], T],
        again: Callable[[str], str],
        warmer: float = 0.0,
    ) -> T:
        """Ask until `read` takes the reply. It raises PromptError with the reason, which the editor is told.

        again: how an unusable reply is to be sent again, in words.
        """
        first: list[BaseMessage] = [SystemMessage(request.system_prompt), HumanMessage(request.prompt)]
        messages, reason = first, ""
        for attempt in range(1, self.retries + 2):
            reply = self.calls.ask(messages, purpose, form=form, warmer=warmer)
            try:
                return read(reply)
            except PromptError as error:
                reason = str(error)
                self.problems.append(self.calls.why_empty or reason)
                self.calls.refuse_cut_off(reason)
            correction = (
                f"Your reply {attempt} of {self.retries + 1} cannot be used. {neutralise(reason)} {again(reply)}"
            )
            quoted = clip(reply, REPLY_CHARACTERS) if reply.strip() else "(an empty reply)"
            messages = [*first, AIMessage(quoted), HumanMessage(correction)]
        last = self.problems[-1]
        raise EditFailedError(f"The editor gave no usable prompt in {self.retries + 1} replies; the last: {last}")

    def _accepted(self, reply: str) -> Prompt:
        """The prompt in a reply. Raises PromptError, with the reason in words for the editor."""
        new = read_prompt(reply, self.old, self.part)
        self._check(new)
        return new

    def _check(self, new: Prompt) -> None:
        """Raise PromptError, with the reason in words for the editor, if a prompt must not be proposed."""
        refuse_no_text(new)
        if new == self.old:
            raise PromptError("The document is the same as before: change it so that the feedback is met.")
        if not new.system.strip() and not new.demonstrations and new.template.strip() == Prompt().template:
            raise PromptError("The document has been emptied: keep or write a system turn or demonstrations.")
        # Recorded replies have this mark in place of the chat model's own keys.
        if SECRET_MARK in new.render() and SECRET_MARK not in self.old.render():
            raise PromptError("The document holds a key: leave it out.")
        refuse_contradictions(new, self.old, self.shown)
        if self.validate is not None:
            self.validate(new)


def _send_again(reply: str) -> str:
    place = "in these fields" if is_object(reply) else f"between {OPEN} and {CLOSE}"
    return f"Send the whole improved variable again, complete, {place}."


def _past_rules(past: Sequence[PastEdit]) -> list[str]:
    rules = [
        f"{PAST_PREFIX} {neutralise(clip(edit.summary, REPLY_CHARACTERS))} It changed the validation reward by "
        f"{edit.gain:+.3f} and was {'kept' if edit.kept else 'dropped'}."
        for edit in [each for each in past if each.kind == "textgrad"][-PAST_EDITS:]
    ]
    return [*rules, "Build on earlier edits that were kept; do not repeat what was dropped."] if rules else []
