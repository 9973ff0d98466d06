"""Calls of an editor: counted, priced, capped before they are made, and without a key in any error."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from edits import NEW, OLD, KeyedChat, counted, failure
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from nslora.tools.editor.call_log import EditorLog, RecordedChat
from nslora.tools.editor.editor import Caps, EditFailedError, Editor
from nslora.tools.editor.pricing import tokens_of
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.errors import EditorCallError, SettingsError
from nslora.tools.prompt import Prompt
from nslora.tools.testing.scripted_chat import ScriptedChat, improved


def test_tokens_are_counted_from_what_the_provider_says_and_priced_by_the_users_table() -> None:
    chat = KeyedChat([counted("critique"), counted(improved(NEW))])
    editor = Editor(chat, prices={"tiny-1": {"input": 10.0, "output": 100.0}})
    usage = editor.edit(OLD, [failure()]).usage
    assert (usage.calls, usage.input_tokens, usage.output_tokens, usage.estimated) == (2, 200, 40, False)
    assert usage.cost == pytest.approx(200 * 10e-6 + 40 * 100e-6)
    assert editor.spent == usage


class RemoteChat(BaseChatModel):
    """A chat model that answers two critiques only if both have been asked for; the first comes alone."""

    together: Any = Field(default_factory=lambda: threading.Barrier(2, timeout=30))
    model_name: str = "remote"

    @property
    def _llm_type(self) -> str:
        return "remote"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        asked = str(messages[1].text)
        if "Question 1?" not in asked and "<IMPROVED_VARIABLE>" not in asked:
            self.together.wait()
        number = next((n for n in (1, 2, 3) if f"Question {n}?" in asked), 0)
        text = improved(NEW) if "<IMPROVED_VARIABLE>" in asked else f"critique {number}"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


def test_critiques_are_asked_for_at_once_and_come_in_the_order_of_their_rows(tmp_path: Path) -> None:
    failures = [failure(1), failure(2, right="ADA"), failure(3, right="BOB")]
    edit = Editor(RemoteChat(), log=EditorLog(tmp_path / "editor.jsonl")).edit(OLD, failures)
    assert edit.critiques == ("critique 1", "critique 2", "critique 3")
    assert (edit.usage.calls, len(EditorLog(tmp_path / "editor.jsonl"))) == (4, 4)


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


class CountingChat(KeyedChat):
    """A model that reports as many input tokens as its request has bytes, and replies as long as it is allowed to."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        result = super()._generate(messages, *args, **kwargs)
        tokens_in = sum(len(str(message.text).encode()) for message in messages)
        said = result.generations[0].message
        said.usage_metadata = UsageMetadata(
            input_tokens=tokens_in, output_tokens=self.max_tokens or 10**6, total_tokens=tokens_in
        )
        return result


@given(
    cap=st.integers(0, 60_000),
    reply_tokens=st.integers(1, 3000),
    own=st.none() | st.integers(1, 3000),
    which=st.sampled_from(["tokens", "cost", "calls"]),
)
@settings(max_examples=25, deadline=None)
def test_no_cap_is_overshot_however_long_the_replies(cap: int, reply_tokens: int, own: int | None, which: str) -> None:
    """Edits until the editor says that it is at its cap; each reply is as long as the request allowed."""
    prices = {"tiny-1": {"input": 1.0, "output": 4.0}}
    limit = {"tokens": cap, "cost": cap / 1e6, "calls": cap % 9}[which]
    caps = Caps(**{which: limit, "reply_tokens": reply_tokens})  # type: ignore[arg-type]
    if which == "calls":
        own = own or 100
    chat = CountingChat([lambda messages: improved(Prompt(f"{len(chat.requests)}"))], repeat=True, max_tokens=own)
    editor = Editor(chat, caps=caps, prices=prices)

    def edit_on() -> None:
        for number in range(50):
            editor.edit(OLD, [failure(number)])

    with pytest.raises(EditFailedError, match=f"cap on {which}") as caught:
        edit_on()
    assert caught.value.disabled
    spent = {"tokens": editor.spent.tokens, "cost": editor.spent.cost, "calls": editor.spent.calls}[which]
    assert spent <= limit
    assert editor.spent.calls == len(chat.requests)


def test_a_reply_is_bound_under_whatever_name_the_integration_has_for_it() -> None:
    class OllamaLike(ScriptedChat):
        num_predict: int | None = -1
        seen: list[int | None] = Field(default_factory=list)

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(self.num_predict)
            return super()._generate(*args, **kwargs)

    chat = OllamaLike(["critique", improved(NEW)])
    Editor(chat, caps=Caps(tokens=100_000, reply_tokens=500)).edit(OLD, [failure()])
    assert chat.seen == [500, 500]
    assert chat.num_predict == -1


def test_a_cap_on_cost_needs_a_price() -> None:
    with pytest.raises(SettingsError, match="needs a price for 'KeyedChat:tiny-1'"):
        Editor(KeyedChat([]), caps=Caps(cost=1.0))


def test_no_key_reaches_an_error() -> None:
    said = "401: key a-plain-secret, sk-proj-abcdefghijklmnop1234, Authorization: Bearer eyJhbGciOi.x"
    with pytest.raises(EditorCallError) as caught:
        Editor(KeyedChat([RuntimeError(said)])).edit(OLD, [failure()])
    message = str(caught.value)
    assert "RuntimeError" in message
    assert "401" in message
    assert not any(secret in message for secret in ("a-plain-secret", "abcdefghijklmnop", "eyJ"))
    assert caught.value.__cause__ is None or "a-plain-secret" not in repr(caught.value.__cause__)


def test_a_provider_that_counts_nothing_is_estimated() -> None:
    said = counted("critique")
    said.usage_metadata = {"input_tokens": None, "output_tokens": None}  # type: ignore[assignment, typeddict-item]
    usage = Editor(KeyedChat([said, improved(NEW)])).edit(OLD, [failure()]).usage
    assert usage.estimated
    assert usage.tokens > 0


@pytest.mark.parametrize(("went", "came"), [(0, 0), (0, 20), (-5, 20), (100, -1)])
def test_a_count_that_no_call_can_have_is_none_and_lifts_no_cap(went: int, came: int) -> None:
    said = [counted(text) for text in ("critique", improved(NEW)) * 20]
    for message in said:
        message.usage_metadata = UsageMetadata(input_tokens=went, output_tokens=came, total_tokens=0)
    chat = KeyedChat(said)
    prices = {"tiny-1": {"input": 10.0, "output": 100.0}}
    usage = Editor(KeyedChat(said[:2]), prices=prices).edit(OLD, [failure()]).usage
    assert usage.estimated
    assert min(usage.input_tokens, usage.output_tokens) > 0 < usage.cost
    editor = Editor(chat, caps=Caps(tokens=20_000, reply_tokens=100))
    with suppress(EditFailedError):
        while True:
            editor.edit(OLD, [failure()])
    assert len(chat.requests) < 40  # the cap ended it, not the script
    assert editor.spent.tokens <= 20_000


def test_the_rule_editor_spends_no_tokens_and_neither_does_its_record(tmp_path: Path) -> None:
    log = EditorLog(tmp_path / "editor.jsonl")
    for chat in (RuleEditor(), RecordedChat(log)):
        usage = Editor(chat, log=log if isinstance(chat, RuleEditor) else None).edit(OLD, [failure()]).usage
        assert usage.calls > 0
        assert (usage.tokens, usage.estimated) == (0, False)


def test_an_empty_reply_may_count_no_tokens() -> None:
    message = counted("critique")
    message.usage_metadata = UsageMetadata(input_tokens=100, output_tokens=0, total_tokens=100)
    assert tokens_of(message) == (100, 0)
