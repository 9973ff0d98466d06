"""TextGrad's own requests, without its side effects, and with tags that no other text can open or close."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from edits import NEW, OLD, failure, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from nslora.tools.editor.editor import Editor
from nslora.tools.editor.textual_gradients import (
    DOCUMENT_ROLE,
    REPLY_ROLE,
    SYSTEM_PROMPT_NOTE,
    Request,
    ShownFailure,
    answers,
    critique_request,
    improve_request,
    load_textgrad,
    neutralise,
    restore,
)
from nslora.tools.prompt import Prompt
from nslora.tools.testing.scripted_chat import ScriptedChat, improved


class WholeList(list[Any]):
    """TextGrad keeps gradients in a set, whose order differs from process to process."""

    def add(self, gradient: Any) -> None:
        self.append(gradient)


def sent_by_textgrad(document: str, failures: Sequence[ShownFailure], critique: str, rules: list[str]) -> list[Request]:
    """The requests of TextGrad's own backward pass and optimizer step."""
    textgrad = load_textgrad()
    from textgrad.autograd.function import BackwardContext
    from textgrad.autograd.llm_ops import LLMCall

    class WholeVariable(textgrad.Variable):  # type: ignore[misc, name-defined]
        def get_short_value(self, n_words_offset: int = 10) -> Any:
            return self.value

    sent = []

    def engine(prompt: str, system_prompt: str) -> str:
        sent.append(Request(system_prompt, prompt))
        return critique if len(sent) <= len(failures) else improved(NEW)

    variable = WholeVariable(document, role_description=DOCUMENT_ROLE)
    variable.gradients = WholeList()
    for shown in failures:
        response = textgrad.Variable(shown.reply, predecessors=[variable], role_description=REPLY_ROLE)
        response.gradients = {textgrad.Variable(shown.feedback, role_description="feedback to the reply")}
        backward = LLMCall(engine, variable).backward
        response.set_grad_fn(
            BackwardContext(backward, response=response, prompt=shown.question, system_prompt=SYSTEM_PROMPT_NOTE)
        )
        response.grad_fn(backward_engine=engine)
    textgrad.TGD([variable], engine=engine, constraints=rules).step()
    return sent


@given(st.text(), st.lists(st.builds(ShownFailure, st.text(), st.text(), st.text(min_size=1)), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_the_requests_are_those_of_textgrads_own_backward_pass_and_step(
    text: str, failures: list[ShownFailure]
) -> None:
    rules = ["Stay {polite}.", text]
    ours = [critique_request(text, failure) for failure in failures]
    ours.append(improve_request(text, failures, [f"critique {text}"] * len(failures), rules))
    assert ours == sent_by_textgrad(text, failures, f"critique {text}", rules)


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
