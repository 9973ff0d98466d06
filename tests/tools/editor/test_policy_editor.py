"""The tuned model as an editor: a chat model over the policy, under the adapter in force."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from nslora.tools.editor.chat_models import editor_name
from nslora.tools.editor.editor import Caps, EditFailedError, Editor, Usage
from nslora.tools.editor.policy_editor import PolicyChat
from nslora.tools.errors import EditorError
from nslora.tools.policy import Generated
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example

FAILURE = Graded(Example("train-1", "Who?", "Ada", {}), "ada", Score(0.0, {"style": 0.0}, "Use capitals.", None))
TURNS = [SystemMessage("Be brief."), HumanMessage("Who?"), AIMessage("Ada"), HumanMessage("Where?")]


def test_roles_and_texts_reach_the_policy_and_tokens_are_counted(tiny_policy: Callable[..., Any]) -> None:
    policy = tiny_policy()
    chat = PolicyChat(policy=lambda: policy, max_tokens=20)
    message = chat.invoke(TURNS)
    dialogue = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ada"},
        {"role": "user", "content": "Where?"},
    ]
    direct = policy.generate([dialogue], adapter=None, max_new_tokens=20)
    assert message.text == direct.replies[0]
    assert message.usage_metadata is not None
    assert message.usage_metadata["input_tokens"] == policy.count_tokens(dialogue)
    assert message.usage_metadata["output_tokens"] == direct.tokens


class Speaks:
    """A policy that says under which adapter it answers."""

    context_tokens = 2048

    def count_tokens(self, dialogue: object) -> int:
        return 3

    def generate(self, dialogues: object, *, adapter: str | None, max_new_tokens: int) -> Generated:
        return Generated((f"under {adapter} END of it",), 3)


def test_the_adapter_in_force_answers_and_is_in_the_name() -> None:
    policy: Any = Speaks()
    chat = PolicyChat(policy=lambda: policy)
    editor = Editor(chat)
    assert (editor.name, chat.invoke("Where?").text) == ("PolicyChat:base", "under None END of it")
    editor.continue_from(0, Usage(), adapter="0123abcd")
    assert (editor.name, chat.invoke("Where?").text) == ("PolicyChat:0123abcd", "under 0123abcd END of it")
    assert editor_name(chat) == editor.name


def test_a_reply_ends_at_the_stop_that_was_asked_for() -> None:
    policy: Any = Speaks()
    assert PolicyChat(policy=lambda: policy).invoke("Where?", stop=["", "END"]).text == "under None "


def test_a_request_without_room_for_a_reply_says_so(tiny_policy: Callable[..., Any]) -> None:
    chat = PolicyChat(policy=tiny_policy)
    with pytest.raises(EditorError, match=r"takes \d+ of the 2048 tokens .* show fewer failures"):
        chat.invoke("x" * 2100)


def test_the_policy_is_loaded_with_the_first_request_and_costs_no_money(tiny_policy: Callable[..., Any]) -> None:
    loaded = []

    def load() -> Any:
        loaded.append(tiny_policy())
        return loaded[-1]

    editor = Editor(PolicyChat(policy=load, max_tokens=16), caps=Caps(cost=0.0), retries=0)
    assert loaded == []
    with pytest.raises(EditFailedError) as caught:
        editor.edit(Prompt(), [FAILURE])
    assert loaded
    assert caught.value.usage.cost == 0.0
