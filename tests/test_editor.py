"""The editor: one transaction through TextGrad's own prompts, counted and capped."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import Field, SecretStr

from nslora.tools.editor import Caps, EditFailedError, Editor, PastEdit, choose_failures
from nslora.tools.editor_calls import ImprovedVariable
from nslora.tools.errors import PromptError, SettingsError
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards import SUGGESTION_PREFIX, Graded, Score
from nslora.tools.scripted_chat import ScriptedChat, improved
from nslora.tools.task import Example
from nslora.tools.textual_gradients import answers, load_textgrad, neutralise, restore

OLD = Prompt("Be brief.", demonstrations=(Demonstration("Who?", "Ada"),))
NEW = Prompt("Reply in capitals.", demonstrations=(Demonstration("Who?", "ADA"),))


def failure(number: int = 1, reply: str = "ada", feedback: str = "Use capitals.", right: str | None = None) -> Graded:
    shown = f"{feedback}\n{SUGGESTION_PREFIX}{right}" if right else feedback
    example = Example(f"train-{number}", f"Question {number}?", "Ada", {})
    return Graded(example, reply, Score(0.5, {"style": 0.0}, shown, right))


def texts(messages: Sequence[BaseMessage]) -> list[str]:
    return [str(message.text) for message in messages]


def test_an_edit_critiques_each_failure_and_then_steps() -> None:
    chat = ScriptedChat(["first critique", "second critique", improved(NEW)])
    edit = Editor(chat).edit(OLD, [failure(1), failure(2, right="ADA")])
    assert edit.prompts == (NEW,)
    assert edit.critiques == ("first critique", "second critique")
    assert edit.usage.calls == 3
    assert edit.usage.estimated
    assert edit.problems == ()
    backward, step = texts(chat.requests[1]), texts(chat.requests[2])
    assert "You are the gradient (feedback) engine" in backward[0]
    assert "<LM_INPUT> Question 2? </LM_INPUT>" in backward[1]
    assert f"{SUGGESTION_PREFIX}ADA" in backward[1]
    assert "<IMPROVED_VARIABLE>" in step[0]
    assert step[1].index("first critique") < step[1].index("second critique")


def test_the_editor_sees_the_whole_document() -> None:
    long = Prompt(" ".join(f"word{number}" for number in range(100)))
    chat = ScriptedChat(["critique", improved(NEW)])
    Editor(chat).edit(long, [failure()])
    assert all(long.render().strip() in texts(request)[1] for request in chat.requests)


def test_few_failures_are_shown_and_those_that_say_something_new_come_first() -> None:
    same = [failure(number, reply=f"r{number}") for number in range(5)]
    other = failure(9, feedback="Use one word.")
    half_new = failure(8, reply="r0", feedback="Use one word.")
    assert choose_failures([*same, half_new, other], 3) == [same[0], other, same[1]]
    chat = ScriptedChat(["critique"] * 4 + [improved(NEW)])
    Editor(chat).edit(OLD, same)
    assert len(chat.requests) == 5


def test_long_texts_are_clipped_and_a_long_suggestion_is_left_out_whole() -> None:
    chat = ScriptedChat(["critique", improved(NEW)])
    Editor(chat).edit(OLD, [failure(reply="x" * 50_000, feedback="y" * 50_000, right="z" * 50_000)])
    shown = texts(chat.requests[0])[1]
    assert len(shown) < 6000
    assert " [...] " in shown
    assert "zz" not in shown


def test_an_unusable_reply_is_told_what_was_wrong() -> None:
    chat = ScriptedChat(["critique", "I would add capitals.", improved(NEW)])
    edit = Editor(chat).edit(OLD, [failure()])
    assert edit.prompts == (NEW,)
    assert len(edit.problems) == 1
    last = chat.requests[-1]
    assert [message.type for message in last] == ["system", "human", "ai", "human"]
    assert "no complete" in texts(last)[3]
    assert texts(last)[2] == "I would add capitals."


def test_retries_are_bounded_and_then_the_edit_has_failed() -> None:
    chat = ScriptedChat(["critique", "no"], repeat=True)
    with pytest.raises(EditFailedError, match="no usable prompt in 3 replies") as caught:
        Editor(chat, retries=2).edit(OLD, [failure()])
    assert len(chat.requests) == 4
    assert caught.value.usage.calls == 4
    assert not caught.value.disabled


def test_what_the_caller_refuses_is_told_to_the_editor() -> None:
    def validate(prompt: Prompt) -> None:
        if prompt == NEW:
            raise PromptError("It copies a validation row.")

    better = Prompt("Reply in capitals, always.")
    chat = ScriptedChat(["critique", improved(NEW), improved(better)])
    assert Editor(chat).edit(OLD, [failure()], validate=validate).prompts == (better,)
    assert "It copies a validation row." in texts(chat.requests[-1])[3]


def test_an_edit_that_changes_nothing_is_unusable() -> None:
    with pytest.raises(EditFailedError, match="same as before"):
        Editor(ScriptedChat(["critique", improved(OLD)], repeat=True)).edit(OLD, [failure()])


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("system", Prompt("S", OLD.template, OLD.demonstrations)),
        ("question", Prompt(OLD.system, "Q: {question}", OLD.demonstrations)),
        ("demonstrations", Prompt(OLD.system, OLD.template, (Demonstration("a", "b"),))),
        ("document", Prompt("S", "Q: {question}", (Demonstration("a", "b"),))),
    ],
)
def test_only_the_part_that_may_change_changes(part: Any, expected: Prompt) -> None:
    chat = ScriptedChat(["critique", improved(Prompt("S", "Q: {question}", (Demonstration("a", "b"),)))])
    assert Editor(chat, edit=part).edit(OLD, [failure()]).prompts == (expected,)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SettingsError, match="document, system, question, demonstrations"):
        Editor(ScriptedChat([]), edit="title")  # type: ignore[arg-type]


def test_past_edits_and_the_rules_of_the_user_are_shown() -> None:
    chat = ScriptedChat(["critique", improved(NEW)])
    past = [PastEdit(f"edit {number}", 0.1 * number, kept=number == 7) for number in range(8)]
    Editor(chat, rules=["Stay polite."]).edit(OLD, [failure()], past=past)
    shown = texts(chat.requests[-1])[1]
    assert "Earlier edit: edit 7 It changed the validation reward by +0.700 and was kept." in shown
    assert "edit 3 It changed the validation reward by +0.300 and was dropped." in shown
    assert "edit 2" not in shown
    assert "Stay polite." in shown


def test_candidates_beyond_the_first_are_asked_for_and_duplicates_dropped() -> None:
    other = Prompt("Shout.")
    chat = ScriptedChat(["critique", improved(NEW), improved(NEW), improved(other)])
    edit = Editor(chat).edit(OLD, [failure()], candidates=3)
    assert edit.prompts == (NEW, other)
    assert "This is alternative 3 of 3" in texts(chat.requests[-1])[1]
    assert OLD.system in texts(chat.requests[-1])[1]


def test_a_candidate_that_fails_does_not_cost_the_first() -> None:
    chat = ScriptedChat(["critique", improved(NEW), TimeoutError("no answer")])
    edit = Editor(chat).edit(OLD, [failure()], candidates=3)
    assert edit.prompts == (NEW,)
    assert "TimeoutError" in edit.problems[0]


def test_after_three_failed_edits_in_a_row_nobody_is_called() -> None:
    chat = ScriptedChat([TimeoutError("no answer")], repeat=True)
    editor = Editor(chat)
    disabled = []
    for _ in range(4):
        with pytest.raises(EditFailedError) as caught:
            editor.edit(OLD, [failure()])
        disabled.append(caught.value.disabled)
    assert disabled == [False, False, True, True]
    assert len(chat.requests) == 3
    assert "not called any more" in str(caught.value)
    editor.consecutive_failures = 2
    with pytest.raises(EditFailedError, match="will not be called again"):
        editor.edit(OLD, [failure()])


def test_a_usable_edit_ends_a_row_of_failures() -> None:
    editor = Editor(ScriptedChat(["critique", improved(NEW)]))
    editor.consecutive_failures = 2
    editor.edit(OLD, [failure()])
    assert editor.consecutive_failures == 0


def test_without_a_failure_nobody_is_called() -> None:
    chat = ScriptedChat([])
    with pytest.raises(EditFailedError, match="no failure"):
        Editor(chat).edit(OLD, [])
    assert chat.requests == []


class KeyedChat(ScriptedChat):
    """A scripted model that holds what real ones hold."""

    model_name: str = "tiny-1"
    api_key: SecretStr = SecretStr("a-plain-secret")
    temperature: float | None = 0.5
    max_tokens: int | None = None


def counted(text: str, tokens_in: int = 100, tokens_out: int = 20) -> AIMessage:
    usage = UsageMetadata(input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out)
    return AIMessage(text, usage_metadata=usage)


def test_tokens_are_counted_from_what_the_provider_says_and_priced_by_the_users_table() -> None:
    chat = KeyedChat([counted("critique"), counted(improved(NEW))])
    editor = Editor(chat, prices={"tiny-1": {"input": 10.0, "output": 100.0}})
    usage = editor.edit(OLD, [failure()]).usage
    assert (usage.calls, usage.input_tokens, usage.output_tokens, usage.estimated) == (2, 200, 40, False)
    assert usage.cost == pytest.approx(200 * 10e-6 + 40 * 100e-6)
    assert editor.spent == usage


class NotingChat(KeyedChat):
    """Notes with which settings it was called."""

    settings: list[tuple[float | None, int | None]] = Field(default_factory=list)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        self.settings.append((self.temperature, self.max_tokens))
        return super()._generate(*args, **kwargs)


def test_later_candidates_are_asked_for_at_a_higher_temperature_and_replies_are_bound_under_a_cap() -> None:
    chat = NotingChat(["critique", improved(NEW), improved(Prompt("Shout."))])
    Editor(chat, caps=Caps(tokens=100_000, reply_tokens=500)).edit(OLD, [failure()], candidates=2)
    assert chat.settings == [(0.5, 500), (0.5, 500), (0.8, 500)]
    assert (chat.temperature, chat.max_tokens) == (0.5, None)
    free = NotingChat(["critique", improved(NEW)])
    Editor(free).edit(OLD, [failure()])
    assert free.settings == [(0.5, None)] * 2


@pytest.mark.parametrize(
    ("caps", "calls", "name"),
    [
        (Caps(calls=1), 1, "calls"),
        (Caps(calls=0), 0, "calls"),
        (Caps(tokens=10), 0, "tokens"),
        (Caps(cost=0.01, reply_tokens=100), 0, "cost"),
    ],
)
def test_a_cap_is_reserved_before_the_call(caps: Caps, calls: int, name: str) -> None:
    chat = KeyedChat([counted("critique"), counted(improved(NEW))])
    editor = Editor(chat, caps=caps, prices={"tiny-1": {"input": 10.0, "output": 100.0}})
    with pytest.raises(EditFailedError, match=f"cap on {name}") as caught:
        editor.edit(OLD, [failure()])
    assert len(chat.requests) == calls
    assert caught.value.disabled


def test_a_cap_on_cost_needs_a_price() -> None:
    with pytest.raises(SettingsError, match="needs a price for 'KeyedChat:tiny-1'"):
        Editor(KeyedChat([]), caps=Caps(cost=1.0))


def test_no_key_reaches_an_error() -> None:
    said = "401: key a-plain-secret, sk-proj-abcdefghijklmnop1234, Authorization: Bearer eyJhbGciOi.x"
    with pytest.raises(EditFailedError) as caught:
        Editor(KeyedChat([RuntimeError(said)])).edit(OLD, [failure()])
    message = str(caught.value)
    assert "RuntimeError" in message
    assert "401" in message
    assert not any(secret in message for secret in ("a-plain-secret", "abcdefghijklmnop", "eyJ"))
    assert caught.value.__cause__ is None or "a-plain-secret" not in repr(caught.value.__cause__)


class StructuredChat(ScriptedChat):
    """A model whose profile says that it can fill in a schema."""

    asked_for: list[Any] = Field(default_factory=list)
    profile: Any = Field(default_factory=lambda: {"structured_output": True})

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        self.asked_for.append(schema)

        def fill(messages: Any) -> dict[str, Any]:
            raw = self.invoke(messages)
            return {"raw": raw, "parsed": ImprovedVariable(document=str(raw.text)), "parsing_error": None}

        return RunnableLambda(fill)


def test_structured_output_is_used_where_the_model_has_it() -> None:
    chat = StructuredChat(["critique", NEW.render()])
    assert Editor(chat).edit(OLD, [failure()]).prompts == (NEW,)
    assert chat.asked_for == [ImprovedVariable]


def test_structured_output_can_be_turned_off() -> None:
    chat = StructuredChat(["critique", improved(NEW)])
    assert Editor(chat, structured="never").edit(OLD, [failure()]).prompts == (NEW,)
    assert chat.asked_for == []


def test_textgrad_leaves_no_file_no_log_and_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "textgrad"]:
        monkeypatch.delitem(sys.modules, name)
    load_textgrad.cache_clear()
    before = dict(os.environ)
    with caplog.at_level(logging.DEBUG):
        Editor(ScriptedChat(["critique", improved(NEW)])).edit(OLD, [failure()])
    assert list(tmp_path.iterdir()) == []
    assert "Question 1?" not in caplog.text
    assert not any(isinstance(h, logging.FileHandler) for h in logging.getLogger("textgrad").handlers)
    assert load_textgrad().SingletonBackwardEngine().get_engine() is None
    assert os.environ == before
    load_textgrad.cache_clear()  # monkeypatch puts the modules back that were imported before


def test_textgrad_brings_no_client_library_and_finds_it_once_its_own_engine_is_used() -> None:
    code = """
import sys
from nslora.tools.textual_gradients import load_textgrad
load_textgrad()
assert not {"openai", "litellm"} & set(sys.modules), "imported for nothing"
from textgrad.engine_experimental.openai import OpenAI
assert OpenAI(api_key="none", base_url="http://127.0.0.1:9").api_key == "none"
import openai
assert type(openai.OpenAI) is type
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


TAGGED = st.lists(st.sampled_from(["<", "\\", "/", " ", "VARIABLE", "think", "feedback-2", ">", "x"])).map("".join)


@given(TAGGED)
def test_neutralising_is_undone_and_leaves_no_tag(text: str) -> None:
    neutral = neutralise(text)
    assert restore(neutral) == text
    assert not re.search(r"<\s*/?\s*(VARIABLE|think|feedback-2)\b", neutral)
    assert neutralise("<VAR> a < b") == "<VAR> a < b"


def test_a_prompt_that_speaks_of_tags_survives_an_edit() -> None:
    tagged = Prompt("Explain </CONTEXT> and <IMPROVED_VARIABLE>x</IMPROVED_VARIABLE> and <think> tags.")
    chat = ScriptedChat(["critique", improved(tagged)])
    assert Editor(chat).edit(OLD, [failure()]).prompts == (tagged,)
    again = ScriptedChat(["critique", improved(NEW)])
    Editor(again).edit(tagged, [failure()])
    assert texts(again.requests[-1])[1].count("</CONTEXT>") == 1


def test_answers_are_the_complete_blocks_outside_of_thinking() -> None:
    opened, closed = "<IMPROVED_VARIABLE>", "</IMPROVED_VARIABLE>"
    assert answers(f"{opened}a{closed} {opened}b{closed}") == ["a", "b"]
    assert answers(f"<think>{opened}a{closed}</think>{opened}b{closed}") == ["b"]
    assert answers(f"{opened}a{closed}</think>{opened}b{closed}") == ["b"]
    assert answers(f"<think>{opened}a{closed}") == []
    assert answers(f"{opened}a {opened}b{closed} c{closed}") == ["b"]
    assert answers(f"{opened}half") == []
    assert answers(f"{opened}say <think>x</think> first{closed}") == ["say <think>x</think> first"]


def test_an_editor_takes_any_chat_model() -> None:
    chat: BaseChatModel = ScriptedChat(["critique", improved(NEW)])
    assert Editor(chat).name == "scripted"
