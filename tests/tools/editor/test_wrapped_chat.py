"""An editor inside LangChain's wrappers is capped, priced, warmed and kept quiet about as one without."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import serve_chat
from edits import NEW, OLD, KeyedChat, StructuredChat, counted, failure
from langchain.chat_models import init_chat_model
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from pydantic import Field, SecretStr

from nslora.tools.editor.call_log import EditorLog
from nslora.tools.editor.chat_models import connect_editor, editor_name
from nslora.tools.editor.editor import Caps, EditFailedError, Editor, Usage
from nslora.tools.editor.redaction import secrets_of
from nslora.tools.editor.wrapped_chat import reply_tokens_of
from nslora.tools.errors import EditorCallError, ModelError, SettingsError
from nslora.tools.prompt import Prompt
from nslora.tools.testing.scripted_chat import ScriptedChat, improved

Wrap = Callable[[Any], Any]
WRAPPERS: dict[str, Wrap] = {
    "plain": lambda chat: chat,
    "config": lambda chat: chat.with_config(tags=["x"]),
    "bind": lambda chat: chat.bind(stop=["\n\n\n"]),
    "retry": lambda chat: chat.with_retry(),
    "fallbacks": lambda chat: chat.with_fallbacks([chat]),
    "configurable": lambda chat: chat.configurable_fields(temperature=ConfigurableField(id="temperature")),
    "several": lambda chat: chat.bind(stop=["\n\n\n"]).with_config(tags=["x"]).with_fallbacks([chat]),
}


class NotingChat(KeyedChat):
    """Notes with which settings it was called, those that were bound among them."""

    seen: list[dict[str, Any]] = Field(default_factory=list)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **bound: Any) -> Any:
        self.seen.append({"temperature": self.temperature, "max_tokens": self.max_tokens, "stop": stop, **bound})
        return super()._generate(messages, stop, run_manager)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_model_inside_names_warms_bounds_and_prices_the_editor(wrap: Wrap) -> None:
    seen: list[dict[str, Any]] = []
    chat = NotingChat([counted("critique"), counted(improved(NEW)), counted(improved(Prompt("Shout.")))], seen=seen)
    prices = {"tiny-1": {"input": 10.0, "output": 100.0}}
    editor = Editor(wrap(chat), caps=Caps(cost=100.0, reply_tokens=500), prices=prices)
    usage = editor.edit(OLD, [failure()], candidates=2).usage
    assert editor_name(wrap(chat)) == "NotingChat:tiny-1"
    assert usage.cost == pytest.approx(3 * (100 * 10e-6 + 20 * 100e-6))
    assert [each["max_tokens"] for each in chat.seen] == [500, 500, 500]
    assert [each["temperature"] for each in chat.seen] == [0.5, 0.5, 0.8]


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_keys_of_the_model_inside_are_known(wrap: Wrap, tmp_path: Path) -> None:
    chat = KeyedChat([RuntimeError("401: bad key a-plain-secret")], repeat=True)
    assert "a-plain-secret" in secrets_of(wrap(chat))
    with pytest.raises(EditorCallError) as caught:
        Editor(wrap(chat), log=EditorLog(tmp_path / "editor.jsonl")).edit(OLD, [failure()])
    assert "a-plain-secret" not in str(caught.value) + (tmp_path / "editor.jsonl").read_text()


def test_keys_that_were_bound_or_lie_in_a_plain_field_are_known() -> None:
    class Own(ScriptedChat):
        credential: str = "zebra-quiet-9d8f7a6b"

    bound = Own([]).bind(extra_headers={"X-Api-Key": "otter-loud-77aa"})
    assert set(secrets_of(bound)) == {"zebra-quiet-9d8f7a6b", "otter-loud-77aa"}


def test_what_was_bound_counts_more_than_what_the_model_holds() -> None:
    chat = NotingChat(["critique", improved(NEW), improved(Prompt("Shout."))])
    bound = chat.bind(max_tokens=8000, temperature=0.2, model="expensive")
    assert editor_name(bound) == "NotingChat:expensive"
    assert reply_tokens_of(bound.with_config(tags=["x"]), 100) == 8000
    with pytest.raises(SettingsError, match="needs a price for 'NotingChat:expensive'"):
        Editor(bound, caps=Caps(cost=1.0), prices={"tiny-1": {"input": 1.0, "output": 1.0}})
    with pytest.raises(EditFailedError, match="cap on tokens"):
        Editor(bound, caps=Caps(tokens=7000, reply_tokens=100)).edit(OLD, [failure()])
    assert not chat.seen
    Editor(bound, caps=Caps(tokens=100_000, reply_tokens=100)).edit(OLD, [failure()], candidates=2)
    assert [each["max_tokens"] for each in chat.seen] == [8000] * 3
    assert [each["temperature"] for each in chat.seen] == pytest.approx([0.2, 0.2, 0.5])


def test_a_temperature_above_1_never_falls() -> None:
    chat = NotingChat(["critique", improved(NEW), improved(Prompt("Shout."))], temperature=1.5)
    Editor(chat).edit(OLD, [failure()], candidates=2)
    assert [each["temperature"] for each in chat.seen] == pytest.approx([1.5, 1.5, 1.8])


def test_several_replies_a_call_are_reserved_and_the_dearest_of_several_models_is_charged() -> None:
    assert reply_tokens_of(KeyedChat([]).bind(n=4), 100) == 400
    with pytest.raises(EditFailedError, match="cap on tokens"):
        Editor(KeyedChat([]).bind(n=4), caps=Caps(tokens=4000, reply_tokens=1500)).edit(OLD, [failure()])
    dear = KeyedChat([], model_name="dear-1")
    chat = KeyedChat([counted("critique"), counted(improved(NEW))]).with_fallbacks([dear])
    prices = {"tiny-1": {"input": 1.0, "output": 1.0}, "dear-1": {"input": 5.0, "output": 9.0}}
    editor = Editor(chat, caps=Caps(cost=1.0), prices=prices)
    assert editor.edit(OLD, [failure()]).usage.cost == pytest.approx(2 * (100 * 5e-6 + 20 * 9e-6))


def test_of_several_models_the_longest_reply_is_reserved_and_every_one_is_bound() -> None:
    chat = NotingChat([RuntimeError("down")], repeat=True, max_tokens=8000)
    other = NotingChat(["critique", improved(NEW)])
    both = chat.with_fallbacks([other])
    with pytest.raises(EditFailedError, match="cap on tokens"):
        Editor(both, caps=Caps(tokens=7000, reply_tokens=100)).edit(OLD, [failure()])
    assert not chat.seen
    Editor(both, caps=Caps(tokens=100_000, reply_tokens=100)).edit(OLD, [failure()])
    assert [each["max_tokens"] for each in other.seen] == [100, 100]
    dear = KeyedChat([]).with_fallbacks([KeyedChat([]).bind(n=8, model="expensive")])
    assert reply_tokens_of(dear, 100) == 800
    with pytest.raises(SettingsError, match="needs a price for 'KeyedChat:expensive'"):
        Editor(dear, caps=Caps(cost=1.0), prices={"tiny-1": {"input": 1.0, "output": 1.0}})


def test_a_bound_that_was_taken_off_is_put_back_under_a_cap() -> None:
    chat = NotingChat(["critique", improved(NEW)], max_tokens=50)
    Editor(chat.bind(max_tokens=None), caps=Caps(tokens=100_000, reply_tokens=100)).edit(OLD, [failure()])
    assert [each["max_tokens"] for each in chat.seen] == [100, 100]


def test_what_was_configured_is_what_is_named_and_bound() -> None:
    chat = NotingChat(["critique", improved(NEW)])
    open_ = chat.configurable_fields(max_tokens=ConfigurableField(id="most"), model_name=ConfigurableField(id="name"))
    dear = open_.with_config(configurable={"most": 8000, "name": "expensive"})
    assert editor_name(dear) == "NotingChat:expensive"
    with pytest.raises(EditFailedError, match="cap on tokens"):
        Editor(dear, caps=Caps(tokens=7000, reply_tokens=100)).edit(OLD, [failure()])
    other = NotingChat(["critique", improved(NEW)], model_name="other")
    chosen = chat.configurable_alternatives(ConfigurableField(id="which"), other=lambda: other).with_config(
        configurable={"which": "other"}
    )
    assert editor_name(chosen) == "NotingChat:other"
    Editor(chosen, caps=Caps(tokens=100_000, reply_tokens=100)).edit(OLD, [failure()])
    assert [each["max_tokens"] for each in other.seen] == [100, 100]


def test_the_key_of_a_model_that_is_made_when_it_is_chosen_is_known() -> None:
    keyed = KeyedChat([RuntimeError("401: bad key otter-loud-77aa")], api_key=SecretStr("otter-loud-77aa"))
    chosen = (
        KeyedChat([])
        .configurable_alternatives(ConfigurableField(id="which"), other=lambda: keyed)
        .with_config(configurable={"which": "other"})
    )
    with pytest.raises(EditorCallError, match=r"bad key \[secret\]"):
        Editor(chosen).edit(OLD, [failure()])


def test_counts_and_authors_are_no_keys_and_no_error_shows_what_was_bound() -> None:
    harmless = KeyedChat([], api_key=SecretStr("")).bind(max_tokens=128000)
    assert not secrets_of(harmless.with_config(metadata={"author": "Charlotte"}))
    keyed = KeyedChat([]).bind(extra_headers={"Authorization": "Bearer otter-loud-77aa"})
    assert "Bearer otter-loud-77aa" in secrets_of(keyed)
    assert connect_editor(keyed) is keyed
    with pytest.raises(ModelError) as caught:
        connect_editor(keyed | (lambda message: message))
    assert "otter" not in str(caught.value)


def test_a_form_is_filled_in_unless_what_was_bound_would_be_left_out() -> None:
    replies = ["critique", json.dumps({"system": "Shout.", "question_template": "{question}", "demonstrations": []})]
    for wrap in (WRAPPERS["config"], WRAPPERS["fallbacks"], WRAPPERS["retry"]):
        chat = StructuredChat(list(replies))
        edit = Editor(wrap(chat)).edit(OLD, [failure()])
        assert edit.prompts[0].system == "Shout."
        assert chat.asked_for
    chat = StructuredChat(["critique", improved(NEW)])
    Editor(chat.bind(stop=["\n\n\n"])).edit(OLD, [failure()])
    assert not chat.asked_for
    for unable in (chat.bind(stop=["\n\n\n"]), ScriptedChat([])):
        with pytest.raises(SettingsError, match="'auto' or 'never'"):
            Editor(unable, structured="always")


def test_a_profile_that_promises_what_the_model_lacks_is_asked_in_words() -> None:
    chat = ScriptedChat(["critique", improved(NEW)], profile={"structured_output": True})
    assert Editor(chat).edit(OLD, [failure()]).prompts == (NEW,)


class OlderChat(StructuredChat):
    """Its method is older than the argument `include_raw`."""

    def with_structured_output(self, schema: Any) -> Any:  # type: ignore[override]
        raise AssertionError(f"asked for {schema} without the raw message")


class HandingOnChat(StructuredChat):
    """Its method hands what it is given on to one that is older."""

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return OlderChat([]).with_structured_output(schema, **kwargs)


@pytest.mark.parametrize("kind", [OlderChat, HandingOnChat])
def test_a_model_that_gives_no_raw_message_beside_a_form_is_asked_in_words(kind: type[StructuredChat]) -> None:
    chat = kind(["critique", improved(NEW)])
    edit = Editor(chat).edit(OLD, [failure()])
    assert edit.prompts == (NEW,)
    assert edit.usage.calls == len(chat.requests) == 2
    with pytest.raises(SettingsError, match="'auto' or 'never'"):
        Editor(chat, structured="always")


def test_a_type_error_of_a_model_that_fills_in_a_form_is_told() -> None:
    class Broken(StructuredChat):
        def _generate(self, *_: Any, **__: Any) -> Any:
            raise TypeError("include_raw: a mistake inside a call")

    with pytest.raises(EditorCallError, match="TypeError: include_raw: a mistake inside a call"):
        Editor(Broken([])).edit(OLD, [failure()])

    class Wrong(StructuredChat):
        def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            raise TypeError("no such schema")

    with pytest.raises(TypeError, match="no such schema"):
        Editor(Wrong([]), structured="always")


def test_a_chain_is_no_editor() -> None:
    with pytest.raises(ModelError, match="no chat model"):
        editor_name(KeyedChat([]) | (lambda message: message))
    with pytest.raises(ModelError, match="no chat model"):
        Editor(StructuredChat([]).with_fallbacks([KeyedChat([]) | (lambda message: message)]))


@pytest.mark.parametrize("count", [10**30, True, "a", 1.5, None])
def test_counts_that_are_none_are_estimated(count: Any) -> None:
    said = AIMessage("critique")
    said.usage_metadata = {"input_tokens": count, "output_tokens": 7, "total_tokens": 7}
    usage = Editor(ScriptedChat([said, improved(NEW)])).edit(OLD, [failure()]).usage
    assert usage.estimated
    assert usage.tokens < 10**6


def test_each_reply_that_is_unusable_is_asked_for_in_words_of_its_own(tmp_path: Path) -> None:
    chat = ScriptedChat(["critique", "no tags", "no tags", improved(NEW)])
    edit = Editor(chat, log=EditorLog(tmp_path / "a.jsonl")).edit(OLD, [failure()])
    assert edit.prompts == (NEW,)
    assert edit.usage.calls == len(chat.requests) == 4
    chat = ScriptedChat(["", "", "critique", improved(NEW)])
    edit = Editor(chat, log=EditorLog(tmp_path / "b.jsonl")).edit(OLD, [failure()])
    assert edit.usage.calls == len(chat.requests) == 4


def test_an_interrupt_of_a_chat_model_is_no_failed_edit() -> None:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.errors import GraphBubbleUp
    from langgraph.graph import START, StateGraph
    from langgraph.types import Command

    class Person(ScriptedChat):
        def _generate(self, *_: Any, **__: Any) -> Any:
            raise AssertionError(interrupt("what do you think?"))

    def node(_: dict[str, Any]) -> dict[str, Any]:
        editor = Editor(Person([]))
        editor.continue_from(0, Usage(), never_swallow=(GraphBubbleUp,))
        try:
            editor.edit(OLD, [failure()])
        except EditorCallError as error:
            return {"said": str(error)}
        return {}

    graph = StateGraph(dict).add_node("node", node).add_edge(START, "node").compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke({}, config)
    assert graph.get_state(config).interrupts[0].value == "what do you think?"
    graph.invoke(Command(resume="too long"), config)
    assert not graph.get_state(config).interrupts


class AsyncOnly(ScriptedChat):
    """A chat model of a client that has no synchronous calls."""

    loops: list[int] = Field(default_factory=list)

    def _generate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> Any:
        await asyncio.sleep(0)
        self.loops.append(id(asyncio.get_running_loop()))
        return ScriptedChat._generate(self, messages)


@pytest.mark.parametrize("wrap", [WRAPPERS["plain"], WRAPPERS["bind"], WRAPPERS["fallbacks"]])
def test_a_chat_model_that_is_async_only_edits_with_and_without_a_running_loop(wrap: Wrap) -> None:
    chat = AsyncOnly(["critique", improved(NEW), "critique", improved(NEW), ConnectionError("lost")])

    async def inside() -> Any:
        return Editor(wrap(chat)).edit(OLD, [failure()])

    assert Editor(wrap(chat)).edit(OLD, [failure()]).prompts == (NEW,)
    assert asyncio.run(inside()).prompts == (NEW,)
    assert len(set(chat.loops)) == 1  # its client may keep connections, which belong to a loop
    with pytest.raises(EditorCallError, match="ConnectionError: lost"):
        Editor(wrap(chat)).edit(OLD, [failure()])


@pytest.mark.parametrize("fields", ["any", ("model", "temperature")])
def test_a_configurable_chat_model_is_an_editor_without_its_key(fields: Any, tmp_path: Path) -> None:
    with serve_chat(ScriptedChat(["Your key is otter-loud-77aa.", improved(NEW)])) as server:
        chat = init_chat_model(
            "tiny-1",
            model_provider="openai",
            base_url=server.base_url,
            api_key="otter-loud-77aa",
            configurable_fields=fields,
        )
        log = EditorLog(tmp_path / "editor.jsonl")
        other = chat.with_config(configurable={"model": "tiny-2"}, tags=["mine"])

        def node(_: dict[str, Any]) -> dict[str, Any]:  # a graph has configurable fields of its own, no model's
            return {"edit": Editor(other, log=log).edit(OLD, [failure()])}

        graph: Any = StateGraph(dict).add_node("node", node).add_edge(START, "node").compile()
        edit = graph.invoke({}, {"configurable": {"thread_id": "1"}})["edit"]
    assert edit.prompts == (NEW,)
    assert [body["model"] for _, body in server.requests] == ["tiny-2"] * 2
    assert (editor_name(chat), editor_name(other)) == ("ChatOpenAI:tiny-1", "ChatOpenAI:tiny-2")
    assert "otter" not in (tmp_path / "editor.jsonl").read_text() + repr(edit)
    assert connect_editor(other) is other


def test_a_configurable_chat_model_without_a_model_is_refused_without_its_key() -> None:
    with pytest.raises(ModelError, match=r"with_config\(configurable=\{'model'") as caught:
        editor_name(init_chat_model(api_key="otter-loud-77aa"))
    assert "otter" not in str(caught.value)
