"""One edit as a transaction: what the editor replies becomes checked prompts, or an error with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from nslora.tools.editor.answer_format import Part, form_for, is_object, read_prompt
from nslora.tools.editor.briefing import Briefing
from nslora.tools.editor.calls import EditFailedError, EditorCalls, Form
from nslora.tools.editor.contradictions import ContradictionError, refuse_contradictions
from nslora.tools.editor.failures_view import (
    ALTERNATIVE_PREFIX,
    CRITIQUE_CHARACTERS,
    REPLY_CHARACTERS,
    clip,
    failure_texts,
)
from nslora.tools.editor.pricing import Usage
from nslora.tools.editor.redaction import SECRET_MARK
from nslora.tools.editor.reflection import Reflected, read_reflection
from nslora.tools.editor.reply_causes import written
from nslora.tools.editor.textual_gradients import (
    CLOSE,
    OPEN,
    REWARD_SAYS,
    Request,
    critique_request,
    improve_request,
    neutralise,
)
from nslora.tools.errors import EditorError, PromptError
from nslora.tools.prompt import Prompt, refuse_no_text
from nslora.tools.rewards.score import Graded

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


@dataclass
class Attempt:
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
        return self._asked(
            request, f"improve {number}", form_for(self.part, self.old), self._accepted, _send_again, warmer
        )

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
        bare = not new.system.strip() and not new.demonstrations and new.template.strip() == Prompt().template
        if bare and not new.read_sections:
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
