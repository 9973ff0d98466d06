"""Settings of the editor reach the chat model and the editor."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nslora.tools.editor.call_log import EditorLog
from nslora.tools.editor.chat_models import connect_editor, transport_settings
from nslora.tools.editor.editor import EditFailedError, Editor, Usage
from nslora.tools.editor.failures_view import describe_edit
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.errors import ModelError, SettingsError
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example
from nslora.tools.testing.scripted_chat import ScriptedChat
from nslora.tools.workspace.editor_factory import editor_of
from nslora.tools.workspace.settings import RunSettings

FAILURE = Graded(Example("train-1", "Who?", "Ada", {}), "ada", Score(0.0, {"style": 0.0}, "Use capitals.", None))


def no_policy() -> Any:
    raise AssertionError("nobody asked for the policy")


def editor(path: Path, chat: Any = None, **settings: Any) -> Editor:
    return editor_of(RunSettings(**settings), chat=chat, log=EditorLog(path / "editor.jsonl"), policy=no_policy)


def test_a_named_chat_model_gets_a_timeout_and_leaves_retries_to_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    for options in ({}, {"base_url": "http://127.0.0.1:8000/v1"}):
        chat: Any = connect_editor("openai:gpt-4o", timeout_s=7.5, **options)
        assert (chat.request_timeout, chat.max_retries) == (7.5, 0)
    default: Any = connect_editor("openai:gpt-4o")
    assert (default.request_timeout, default.max_retries) == (180.0, 0)


def test_only_what_an_integration_knows_is_set() -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import Field

    class Ollama(ScriptedChat):
        client_kwargs: dict[str, Any] | None = Field(default_factory=dict)

    assert transport_settings(ChatOpenAI, 5.0) == {"timeout": 5.0, "max_retries": 0}
    assert transport_settings(Ollama, 5.0) == {"client_kwargs": {"timeout": 5.0}}
    assert transport_settings(ScriptedChat, 5.0) == {}


def test_caps_of_the_settings_hold_over_processes(tmp_path: Path) -> None:
    chat = ScriptedChat(["critique"], repeat=True)
    capped = editor(tmp_path, chat, editing={"max_calls": 10})
    capped.continue_from(0, Usage(calls=10))
    with pytest.raises(EditFailedError, match="cap on calls") as caught:
        capped.edit(Prompt(), [FAILURE])
    assert caught.value.disabled
    assert chat.requests == []


def test_a_cap_on_cost_needs_a_price_but_not_for_what_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    prices = {"gpt-4o": {"input": 2.5, "output": 10.0}}
    assert editor(tmp_path, editing={"max_cost": 1.0}).name == "rules"
    assert editor(tmp_path, editor="policy", editing={"max_cost": 1.0}).name == "PolicyChat:base"
    assert editor(tmp_path, editor="openai:gpt-4o", editing={"max_cost": 1.0, "prices": prices}).name
    with pytest.raises(SettingsError, match="needs a price"):
        editor(tmp_path, editor="openai:gpt-4o", editing={"max_cost": 1.0})
    with pytest.raises(ValidationError, match="output"):
        RunSettings.model_validate({"editing": {"prices": {"gpt-4o": {"input": 1.0}}}})


def test_a_record_is_named_as_an_editor(tmp_path: Path) -> None:
    record = tmp_path / "earlier.jsonl"
    with pytest.raises(ModelError, match="no record"):
        connect_editor(f"recorded:{record}")
    Editor(RuleEditor(), log=EditorLog(record)).edit(Prompt(), [FAILURE])
    again = Editor(connect_editor(f"recorded:{record}"))
    assert again.edit(Prompt(), [FAILURE]).prompts == Editor(RuleEditor()).edit(Prompt(), [FAILURE]).prompts
    with pytest.raises(EditFailedError, match="which is new"):
        again.edit(Prompt("Another."), [FAILURE])


def test_an_edit_is_remembered_on_one_line() -> None:
    old = Prompt("Be brief.", demonstrations=(Demonstration("a", "b"), Demonstration("c", "d")))
    new = Prompt("Be\nvery   brief.", demonstrations=(Demonstration("c", "d"), Demonstration("e", "f")))
    assert describe_edit(old, new) == (
        'The system turn became "Be very brief.". 2 demonstrations (added "e"; removed "a").'
    )
    assert describe_edit(old, Prompt(old.system, old.template, old.demonstrations[::-1])) == (
        "2 demonstrations (in another order)."
    )
    assert describe_edit(old, Prompt(old.system, "Q: {question}", old.demonstrations)) == (
        'The question template became "Q: {question}".'
    )
    assert len(describe_edit(old, Prompt("x" * 10_000))) < 500
