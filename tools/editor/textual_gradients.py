r"""TextGrad, bound to any engine: its own backward and optimizer prompts, over a graph that lives for one edit.

TextGrad 0.1.8 was read and measured for this; what is worked around here, and why:

- importing it opens a log of every prompt in the working directory, and imports two client libraries, one of which
  asks the network for a price list;
- its variables hash by identity, so gradients come in another order in every process, and no variable can be pickled:
  a graph is made for one edit out of plain strings, its gradients are kept in a list, only strings leave it;
- it shows an optimizer ten words from either end of the variable: here the whole document is shown;
- it escapes nothing: tags inside questions, replies, feedback, critiques and documents are neutralised, `<VARIABLE>`
  becoming `<\VARIABLE>`, and given back in the answer;
- it takes the text after the first opening tag of a reply, finished or not: replies are read by `answers` instead.

Source: Yuksekgonul et al., "TextGrad: Automatic Differentiation via Text", arXiv 2406.07496.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

OPEN, CLOSE = "<IMPROVED_VARIABLE>", "</IMPROVED_VARIABLE>"
DOCUMENT_ROLE = "prompt document for a language model: system turn, question template and demonstrations"
REPLY_ROLE = "reply of the language model"
# The document stands in the prompt once, as the variable; repeating it in each conversation only costs tokens.
SYSTEM_PROMPT_NOTE = "(made from the prompt document that is to be improved)"

# Every tag that TextGrad's prompts use, and the think blocks of reasoning models, which `answers` skips.
_NAMES = (
    "IMPROVED_VARIABLE|VARIABLE|ROLE|CONTEXT|CONVERSATION|FEEDBACK(?:-\\d+)?|LM_SYSTEM_PROMPT|LM_INPUT|LM_OUTPUT|"
    "OBJECTIVE_FUNCTION|CONSTRAINTS|EXAMPLES|PAST_ITERATIONS|FOCUS|think|thinking"
)
_TAG = re.compile(rf"<(\\*)(?=\s*/?\s*(?:{_NAMES})\b)", re.IGNORECASE)
_NEUTRAL_TAG = re.compile(rf"<\\(\\*)(?=\s*/?\s*(?:{_NAMES})\b)", re.IGNORECASE)
_REPLY_TAG = re.compile(r"<(/?)(IMPROVED_VARIABLE|think|thinking)>", re.IGNORECASE)


class Engine(Protocol):
    """What TextGrad calls: a prompt and a system prompt in, the reply's text out."""

    def __call__(self, prompt: str, system_prompt: str) -> str: ...


def neutralise(text: str) -> str:
    """The text with a backslash in each of TextGrad's tags, so that it can open or close none."""
    return _TAG.sub(r"<\\\1", text)


def restore(text: str) -> str:
    """Undo `neutralise`: `restore(neutralise(text)) == text` for every text."""
    return _NEUTRAL_TAG.sub(r"<\1", text)


def as_answer(document: str) -> str:
    """The document as an optimizer's reply; tags that would end it early are neutralised."""
    return f"{OPEN}\n{_REPLY_TAG.sub(lambda tag: neutralise(tag[0]), document)}\n{CLOSE}"


def answers(reply: str) -> list[str]:
    """The complete answer blocks of an optimizer's reply, first to last, without those inside think blocks.

    A block that was opened twice begins at the last opening tag. A closing think tag without an opening one ends
    thinking that began in the chat template, so what stands before it is no answer. Linear in the reply's length.
    """
    found: list[str] = []
    start: int | None = None
    thinking, inner_think = False, 0
    for tag in _REPLY_TAG.finditer(reply):
        closes, name = tag[1] == "/", tag[2].upper()
        if name != "IMPROVED_VARIABLE":
            if start is not None and (not closes or inner_think):
                inner_think += -1 if closes else 1
            elif closes:
                if not thinking:
                    found, start = [], None
                thinking = False
            else:
                thinking = True
        elif thinking:
            continue
        elif not closes:
            start, inner_think = tag.end(), 0
        elif start is not None:
            found.append(reply[start : tag.start()])
            start = None
    return found


class _InOrder(list[Any]):
    """A list where TextGrad expects a set: gradients in the order of the failures, in every process."""

    def add(self, gradient: Any) -> None:
        self.append(gradient)


class PromptGraph:
    """One prompt document with the critiques of the failures under it, for the length of one edit.

    Everything that is given must be neutralised already; everything that comes back is.
    """

    def __init__(self, document: str, engine: Engine) -> None:
        self._document = document
        self._engine = engine
        self._textgrad = load_textgrad()
        self._variable = _whole_variable(self._textgrad)(document, role_description=DOCUMENT_ROLE)
        self._variable.gradients = _InOrder()

    def backward(self, question: str, reply: str, feedback: str) -> str:
        """Ask the engine how the document caused a failure; returns its critique. One call."""
        from textgrad.autograd.function import BackwardContext
        from textgrad.autograd.llm_ops import LLMCall

        variable = self._textgrad.Variable
        response = variable(reply, predecessors=[self._variable], role_description=REPLY_ROLE)
        response.gradients = _InOrder([variable(feedback, role_description="feedback to the reply")])
        call = LLMCall(self._engine, self._variable)
        response.set_grad_fn(
            BackwardContext(call.backward, response=response, prompt=question, system_prompt=SYSTEM_PROMPT_NOTE)
        )
        response.grad_fn(backward_engine=self._engine)
        return str(self._variable.gradients[-1].value)

    def step(self, constraints: Sequence[str], engine: Engine) -> str:
        """One step of textual gradient descent from the document, which stays as it was; returns the new text."""
        self._variable.set_value(self._document)
        optimizer = self._textgrad.TGD([self._variable], engine=engine, constraints=list(constraints))
        try:
            optimizer.step()
            return str(self._variable.value)
        finally:
            self._variable.set_value(self._document)


@functools.cache
def load_textgrad() -> ModuleType:
    """TextGrad, imported without a trace: no file in the working directory, no request, nothing logged.

    Its own engines' client libraries, litellm and openai, are put off until one of those engines is used, which this
    project never does: 0.3 s of CPU instead of 5.0 (2026-11, two cores of an AMD EPYC).
    """
    with _put_off("litellm", "completion"), _put_off("openai", "OpenAI"):
        folder = tempfile.mkdtemp(prefix="nslora-textgrad-")
        try:
            with _environment(TEXTGRAD_LOG_DIR=folder):
                import textgrad
            _silence(logging.getLogger("textgrad"))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return textgrad  # type: ignore[no-any-return]  # the library has no type information


def _silence(logger: logging.Logger) -> None:
    """It logs every prompt and reply in full, which may hold the user's data."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.CRITICAL + 1)


@contextmanager
def _put_off(module: str, name: str) -> Iterator[None]:
    """While inside, `from module import name` gives a function that imports the module once it is called.

    A module that is already imported is left as it is.
    """
    if module in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    setattr(stand_in, name, call)
    sys.modules[module] = stand_in
    try:
        yield
    finally:
        del sys.modules[module]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _whole_variable(textgrad: ModuleType) -> Any:
    class WholeVariable(textgrad.Variable):  # type: ignore[misc, name-defined]  # TextGrad has no type information
        def get_short_value(self, n_words_offset: int = 10) -> Any:
            return self.value

    return WholeVariable
