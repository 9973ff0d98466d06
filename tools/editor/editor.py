"""The symbolic editor: failures and their feedback in, new prompt documents out, by TextGrad through any chat model.

An edit is one transaction, by one of two protocols. `reflect`: one request tells the editor all that is known
(briefing.py), and one reply holds its analysis, which is the textual gradient, and one or several documents.
`textgrad`: the editor criticises each of a few failures (TextGrad's backward request) and then writes a new document
(TextGrad's optimizer request). Documents are parsed and checked in attempt.py. If none is usable, the editor is told
the reason and asked again, a bounded number of times. On any failure the old prompt stays in force, and the caller gets
one EditFailedError with what the attempt cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from nslora.tools.editor.answer_format import Part, Structured, format_rules, layout_rules
from nslora.tools.editor.attempt import Attempt, Edit
from nslora.tools.editor.briefing import (
    INPUT_TOKENS,
    LEAST_TOKENS,
    MOST_ROWS,
    ROWS_FOR_SMALL,
    Situation,
    brief,
    tokens_of_text,
)
from nslora.tools.editor.call_log import EditorLog, RecordedCall
from nslora.tools.editor.calls import EditFailedError, EditorCalls
from nslora.tools.editor.failures_view import (
    MAX_FAILURES,
    PAST_PREFIX,
    REPLY_CHARACTERS,
    PastEdit,
    choose_failures,
    clip,
    right_reply_of,
)
from nslora.tools.editor.pricing import Caps, Usage
from nslora.tools.editor.reflection import AnswerShape, answer_format, reflection_form
from nslora.tools.editor.settings import Protocol
from nslora.tools.editor.textual_gradients import neutralise, step_request
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.errors import EditorError, SettingsError
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded

__all__ = ["Caps", "Edit", "EditFailedError", "Editor", "Part", "PastEdit", "Usage", "choose_failures"]

PAST_EDITS = 5


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
        attempt = Attempt(self._calls, self._part, self._retries, prompt, validate)
        try:
            if self.protocol == "reflect":
                edit = self._reflect(attempt, failures, past, situation or Situation(), candidates)
            else:
                constraints = [
                    *format_rules(self._part, prompt.sections, prompt.read_sections),
                    *self._rules,
                    *_past_rules(past),
                ]
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
        attempt: Attempt,
        failures: Sequence[Graded],
        past: Sequence[PastEdit],
        situation: Situation,
        candidates: int,
    ) -> Edit:
        """One request with all that is known, within the limit."""
        document = neutralise(attempt.old.render())
        constraints = [
            *layout_rules(self._part, situation.columns, attempt.old.sections, attempt.old.read_sections),
            *self._rules,
        ]
        may_write = any(right_reply_of(each) is None for each in failures)
        small = self._calls.is_small
        documents, short = (1, not may_write) if small else (candidates, False)
        sections = self._part == "document" and bool(attempt.old.read_sections)
        longest = AnswerShape(self._part, documents, may_write, short, listing=True, sections=sections)
        fixed = sum(map(tokens_of_text, step_request(document, "", constraints, answer_format(longest))))
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
        shape = replace(longest, listing=bool(briefing.answers))
        request = step_request(document, briefing.context, constraints, answer_format(shape))
        return attempt.reflect(request, briefing, candidates, reflection_form(shape))

    def _failed_often(self) -> str:
        return f"The editor {self.name} failed {self.consecutive_failures} times in a row"


def _past_rules(past: Sequence[PastEdit]) -> list[str]:
    rules = [
        f"{PAST_PREFIX} {neutralise(clip(edit.summary, REPLY_CHARACTERS))} It changed the validation reward by "
        f"{edit.gain:+.3f} and was {'kept' if edit.kept else 'dropped'}."
        for edit in [each for each in past if each.kind == "textgrad"][-PAST_EDITS:]
    ]
    return [*rules, "Build on earlier edits that were kept; do not repeat what was dropped."] if rules else []
