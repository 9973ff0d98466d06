"""The exported chat template writes what the run sends, for every family of templates that TRL ships."""

import re
from pathlib import Path
from typing import Any

import pytest
import trl

from nslora.tools.errors import ModelError
from nslora.tools.export.template import exported_template
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.policy import Thinking
from nslora.tools.prompt import Demonstration, Prompt, Section
from nslora.tools.testing.tiny_model import byte_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"
TOKEN = re.compile(r"<[|｜/]?[\w ▁｜|/]+[|｜]?>|\[/?(?:INST|THINK)\]")
FULL = Prompt(
    system="Reply with {{ braces }} {% and %} 'quotes' \\ and é.\n{section:house}",
    template='Q\\n: {question}\n\nIt\'s "asked" {# so #}.',
    demonstrations=(Demonstration("Who?", '{"answer": "it\'s \\"she\\""}'), Demonstration("When?\nWhere?", "1911\n")),
    sections=(Section("house", "Write dates as {question}."),),
)
PROMPTS = (FULL, Prompt(), Prompt(template="{question} /short"), Prompt(system="Be brief."))
HISTORY = (("system", "You sell tea."), ("user", "Hi"), ("assistant", "Hello!"))


def format_of(template: str | None, thinking: Thinking) -> ChatFormat:
    tokenizer = byte_tokenizer(chat_template=True)
    tokenizer.chat_template = template
    tokenizer.bos_token = "<s>"
    marks = sorted({each for each in TOKEN.findall(template or "") if "think" not in each.lower()})
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return ChatFormat(tokenizer, thinking=thinking)


def asked(tokenizer: Any, template: str, messages: list[dict[str, Any]], **switch: Any) -> str:
    """As any client's request is rendered, by transformers and by vLLM."""
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True, **switch
        )
    )


@pytest.mark.parametrize(
    ("names", "prompts"),
    [
        ((None, "qwen2_5", "qwen3", "llama3_2", "gemma", "deepseek_r1_distill"), PROMPTS[:1]),
        (("qwen2_5",), PROMPTS),
        pytest.param((None, *sorted(path.stem for path in FOLDER.glob("*.jinja"))), PROMPTS, marks=pytest.mark.engines),
    ],
    ids=["kinds of templates", "kinds of prompts", "all"],
)
def test_a_plain_request_is_rendered_as_the_run_rendered_it(
    names: tuple[str | None, ...], prompts: tuple[Prompt, ...]
) -> None:
    """A question, a dialogue with a system turn of its own, and content in parts."""
    tried = 0
    for name in names:
        for thinking in ("off", "template") if len(names) > 10 else ("off",):
            chat = format_of((FOLDER / f"{name}.jinja").read_text(encoding="utf-8") if name else None, thinking)
            try:
                chat.render(FULL.messages("a"))
            except ModelError:
                continue  # a run refuses this template, too
            for prompt in prompts:
                compare(chat, prompt, f"{name} {thinking} {prompt.hash}")
                tried += 1
    assert tried >= len(names)


def compare(chat: ChatFormat, prompt: Prompt, where: str) -> None:
    template, text = exported_template(chat, prompt), "Who {{ built }}\nthe 'mill'?"
    plain = [{"role": "user", "content": text}]
    assert asked(chat.tokenizer, template, plain) == chat.render(prompt.messages(text)), where
    parts = [{"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "?"}]}]
    assert asked(chat.tokenizer, template, parts) == chat.render(prompt.messages("Who ?")), where
    dialogue = [*({"role": role, "content": text} for role, text in HISTORY), *plain]
    assert asked(chat.tokenizer, template, dialogue) == chat.render(prompt.messages(text, HISTORY)), where


def test_one_variable_switches_the_prompt_off() -> None:
    chat = format_of((FOLDER / "qwen2_5.jinja").read_text(encoding="utf-8"), "off")
    plain = [{"role": "user", "content": "Who?"}]
    template = exported_template(chat, FULL)
    assert asked(chat.tokenizer, template, plain, nslora=False) == chat.render(plain)
    assert "Who?" in asked(chat.tokenizer, template, plain) != chat.render(plain)


def test_an_answered_dialogue_begins_with_the_prompt_of_its_question() -> None:
    """So training on the exported model's own template, by TRL, teaches replies to the whole prompt."""
    chat = format_of((FOLDER / "qwen2_5.jinja").read_text(encoding="utf-8"), "off")
    template, plain = exported_template(chat, FULL), [{"role": "user", "content": "Who?"}]
    whole = chat.tokenizer.apply_chat_template(
        [*plain, {"role": "assistant", "content": "Ada"}], chat_template=template, tokenize=False
    )
    assert whole.startswith(asked(chat.tokenizer, template, plain) + "Ada")


@pytest.mark.parametrize("content", [None, "x"])
def test_turns_that_are_no_users_stay_as_they_are(content: str | None) -> None:
    chat = format_of((FOLDER / "qwen2_5.jinja").read_text(encoding="utf-8"), "off")
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": content, "tool_calls": [call]}]
    text = asked(chat.tokenizer, exported_template(chat, Prompt(system="S")), turns)
    assert '"name": "look"' in text
    assert text.count("Who?") == 1
