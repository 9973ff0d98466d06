"""Tools through chat templates: those of Qwen and Llama as TRL keeps them, and in words where a template knows none."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.tool_turns import with_tools
from nslora.tools.testing.tiny_model import CHATML, byte_tokenizer

SCHEMA = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
    {"role": "tool", "name": "add", "content": "two"},
]


def format_of(template: str) -> ChatFormat:
    tokenizer = byte_tokenizer(True)
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    kept = Path(spec.origin).parent / "chat_templates" / f"{template}.jinja"
    tokenizer.chat_template = kept.read_text(encoding="utf-8") if kept.is_file() else template
    return ChatFormat(tokenizer)


HERMES_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
HERMES_RESULT = "<tool_response>\ntwo\n</tool_response>"


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("qwen2_5", ["Be brief.\n\n# Tools", HERMES_CALL, f"user\n{HERMES_RESULT}"]),
        ("qwen3", [HERMES_CALL, HERMES_RESULT]),
        (
            "llama3_2",
            ["Given the following functions", '{"name": "add", "parameters": {"a": 1}}', "ipython<|end_header"],
        ),
        (CHATML, ["system\nBe brief.\n\n# Tools", HERMES_CALL, f"user\n{HERMES_RESULT}"]),
    ],
)
def test_schemas_calls_and_results_reach_the_model(template: str, parts: list[str]) -> None:
    written = format_of(template)
    assert written.knows_tools == (template != CHATML)
    text = written.render(with_tools(TURNS, [SCHEMA]))
    for part in (*parts, '"description": "Adds."', "1 + 1?", "two"):
        assert part in text
    assert "add" not in written.render(TURNS[:2])
    assert written.count(with_tools(TURNS, [SCHEMA])) > written.count(TURNS[:2])


def test_a_trained_call_is_the_templates_own_text_and_alone_is_learnt() -> None:
    written = format_of("qwen2_5")
    asked, reply = with_tools(TURNS[:2], [SCHEMA]), '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    prompt, completion = written.pair_ids(asked, reply)
    text = written.tokenizer.decode([*prompt, *completion])
    assert text == written._written(with_tools(TURNS[:3], [SCHEMA])).rstrip("\n")
    assert written.tokenizer.decode(completion) == f"{reply}<|im_end|>"
