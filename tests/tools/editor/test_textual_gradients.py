"""TextGrad's own prompts and step, without its side effects, and with tags that nobody else can open or close."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from edits import NEW, OLD, failure, texts
from hypothesis import given
from hypothesis import strategies as st

from nslora.tools.editor.editor import Editor
from nslora.tools.editor.textual_gradients import DOCUMENT_ROLE, answers, load_textgrad, neutralise, restore
from nslora.tools.prompt import Prompt
from nslora.tools.testing.scripted_chat import ScriptedChat, improved


def test_the_prompts_are_textgrads_own() -> None:
    """Its system prompts to the letter, and its instructions around what this edit fills in."""
    load_textgrad()
    from textgrad.autograd.llm_backward_prompts import BACKWARD_SYSTEM_PROMPT, EVALUATE_VARIABLE_INSTRUCTION
    from textgrad.optimizer.optimizer_prompts import (
        OPTIMIZER_SYSTEM_PROMPT,
        TGD_PROMPT_PREFIX,
        TGD_PROMPT_SUFFIX,
    )

    chat = ScriptedChat(["critique", improved(NEW)])
    Editor(chat).edit(OLD, [failure()])
    (backward_system, backward), (step_system, step) = (texts(request) for request in chat.requests)
    tags = {"new_variable_start_tag": "<IMPROVED_VARIABLE>", "new_variable_end_tag": "</IMPROVED_VARIABLE>"}
    assert backward_system == BACKWARD_SYSTEM_PROMPT
    assert step_system == OPTIMIZER_SYSTEM_PROMPT.format(**tags)
    filled = {"variable_desc": DOCUMENT_ROLE, "variable_short": OLD.render()}
    assert EVALUATE_VARIABLE_INSTRUCTION.format(**filled) in backward
    assert step.startswith(TGD_PROMPT_PREFIX.format(**filled, variable_grad="\0").partition("\0")[0])
    assert step.endswith(TGD_PROMPT_SUFFIX.format(**tags))


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


TAGGED = st.lists(st.sampled_from(["<", "\\", "/", " ", "VARIABLE", "think", "feedback-2", ">", "x"])).map("".join)


def test_textgrad_brings_no_client_library_and_finds_it_once_its_own_engine_is_used() -> None:
    code = """
import sys
from nslora.tools.editor.textual_gradients import load_textgrad
load_textgrad()
assert not {"openai", "litellm"} & set(sys.modules), "imported for nothing"
from textgrad.engine_experimental.openai import OpenAI
assert OpenAI(api_key="none", base_url="http://127.0.0.1:9").api_key == "none"
import openai
assert type(openai.OpenAI) is type
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
