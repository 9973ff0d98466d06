"""Tool calls in replies, as Qwen, Hermes and Llama write them; malformed ones are told apart from answers."""

import json

import pytest

from nslora.tools.agents.messages import dialogue_of, message_of
from nslora.tools.agents.tool_calls import read_calls

ADD = ("add", {"a": 1, "b": 2})
WRITTEN = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
LLAMA = '{"name": "add", "parameters": {"a": 1, "b": 2}}'


@pytest.mark.parametrize(
    ("reply", "calls", "text"),
    [
        (f"<tool_call>\n{WRITTEN}\n</tool_call>", [ADD], ""),
        (f"I add.\n<tool_call>\n{WRITTEN}\n</tool_call>\n<tool_call>{WRITTEN}</tool_call>", [ADD, ADD], "I add."),
        (LLAMA, [ADD], ""),
        (f"<|python_tag|>{LLAMA}; {LLAMA}", [ADD, ADD], ""),
        ('{"type": "function", "name": "add", "parameters": {}}', [("add", {})], ""),
        ('{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}', [ADD], ""),
        ('<tool_call>{"name": "now"}</tool_call>', [("now", {})], ""),
        ("The sum is 3.", [], "The sum is 3."),
        ('{"name": "Ada", "answer": 3}', [], '{"name": "Ada", "answer": 3}'),
        ('{"answer": {"name": "add"}}', [], '{"answer": {"name": "add"}}'),
    ],
)
def test_calls_are_read_in_the_formats_of_qwen_hermes_and_llama(reply: str, calls: list[object], text: str) -> None:
    found = read_calls(reply, "x")
    assert [(each["name"], each["args"]) for each in found.valid] == calls
    assert (found.text, found.problem) == (text, "")


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        (f"<tool_call>\n{WRITTEN[:-1]}\n</tool_call>", "not valid JSON"),
        (f"<tool_call>\n{WRITTEN}", "not closed"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'no "name"'),
        ('<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>', "arguments are list"),
        ('<tool_call>{"name": "add", "args": {}}</tool_call>', "unknown key 'args'"),
        (LLAMA[:-1], "not valid JSON"),
        (f"{LLAMA} and so on", "not valid JSON"),
    ],
)
def test_a_malformed_call_is_given_back_as_such(reply: str, part: str) -> None:
    message, calls = message_of([], reply, reads_tools=True, metadata={})
    assert part in calls.problem
    assert message.invalid_tool_calls[-1]["error"] == calls.problem
    assert message_of([], reply, reads_tools=False, metadata={})[0].text == reply  # without tools it is text


def test_a_reply_is_sent_again_as_it_was_written_unless_the_agent_has_changed_it() -> None:
    reply = f"<think>\nhm\n</think>\n\nI  add.\n<tool_call>{WRITTEN}</tool_call>"
    message, _ = message_of([{"role": "user", "content": "?"}], reply, reads_tools=True, metadata={})
    assert message.additional_kwargs == {"reasoning_content": "hm"}
    assert dialogue_of([message]) == [{"role": "assistant", "content": f"I  add.\n<tool_call>{WRITTEN}</tool_call>"}]
    changed = message.model_copy(update={"content": "I add."})
    (turn,) = dialogue_of([changed])
    assert turn["content"] == "I add."
    assert json.loads(turn["tool_calls"]) == [{"type": "function", "function": {"name": "add", "arguments": ADD[1]}}]
