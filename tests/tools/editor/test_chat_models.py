"""What a user may name as the editor."""

import importlib.util
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

from nslora.tools.editor.chat_models import connect_editor, editor_name
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.errors import ModelError
from nslora.tools.testing.scripted_chat import ScriptedChat


def test_rules_is_the_embedded_editor() -> None:
    chat = connect_editor("rules")
    assert isinstance(chat, RuleEditor)
    assert editor_name(chat) == "rules"


def test_a_chat_model_object_passes_through() -> None:
    chat = ScriptedChat([])
    assert connect_editor(chat) is chat


def test_policy_is_the_tuned_model_itself() -> None:
    chat = ScriptedChat([])
    assert connect_editor("policy", policy_chat=lambda: chat) is chat
    with pytest.raises(ModelError, match="needs a policy"):
        connect_editor("policy")


def test_provider_and_model_go_to_the_providers_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    chat = connect_editor("openai:gpt-4o")
    assert isinstance(chat, ChatOpenAI)
    assert editor_name(chat) == "ChatOpenAI:gpt-4o"


def test_without_langchain_openai_still_works_and_others_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "langchain" else known(name, *a))
    assert isinstance(connect_editor("openai:gpt-4o"), ChatOpenAI)
    with pytest.raises(ModelError, match="pip install langchain langchain-anthropic"):
        connect_editor("anthropic:some-model")


@pytest.mark.parametrize("provider", ["anthropic", "ollama", "mistralai"])
def test_a_missing_integration_is_named(provider: str) -> None:
    if importlib.util.find_spec(f"langchain_{provider}") is not None:
        pytest.skip(f"langchain-{provider} is installed here")
    with pytest.raises(ModelError, match=f"langchain-{provider}"):
        connect_editor(f"{provider}:some-model")


def test_a_missing_key_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelError, match="openai:gpt-4o"):
        connect_editor("openai:gpt-4o")


@pytest.mark.parametrize(("environment", "key"), [(None, "none"), ("a-key", "a-key")])
def test_a_base_url_is_any_server_that_speaks_the_protocol(
    monkeypatch: pytest.MonkeyPatch, environment: str | None, key: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if environment:
        monkeypatch.setenv("OPENAI_API_KEY", environment)
    chat: Any = connect_editor("smollm2", base_url="http://127.0.0.1:8000/v1")
    assert isinstance(chat, ChatOpenAI)
    assert (chat.model_name, chat.openai_api_base) == ("smollm2", "http://127.0.0.1:8000/v1")
    assert chat.openai_api_key.get_secret_value() == key


@pytest.mark.parametrize("spec", ["", "gpt-4o", ":gpt-4o", "openai:", 5, "nobody:some-model"])
def test_an_unknown_editor_lists_what_is_known(spec: Any) -> None:
    with pytest.raises(ModelError, match="'provider:model'"):
        connect_editor(spec)


def test_a_base_url_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="is no address"):
        connect_editor("smollm2", base_url="localhost:8000")
