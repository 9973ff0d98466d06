r"""TextGrad's requests to a chat model, built from its own templates, and the reading of replies to them.

The protocol `textgrad` sends two kinds of request. TextGrad's backward pass asks for a critique of the prompt
document, given one failing reply and its feedback (a "textual gradient"). Its optimizer step asks for an improved
document, given all critiques. The texts are those of TextGrad 0.1.8 to the letter:
`tests/tools/editor/test_textual_gradients.py` compares them with what TextGrad's own classes send. The protocol
`reflect` sends the optimizer step alone, with rows in the place of critiques and without TextGrad's answer format; the
editor writes its analysis, which is the textual gradient, and the documents in one reply.

TextGrad's classes themselves are not used, for these reasons:

- importing the package opens a log of every prompt in the working directory and imports two client libraries;
- variables hash by identity, so gradients come in another order in every process, and they cannot be pickled;
- the optimizer sees only the first and last ten words of the variable; here it sees the whole document;
- nothing is escaped: tags inside questions, replies, feedback, critiques and documents act as TextGrad's own. Here
  `<VARIABLE>` in such a text becomes `<\VARIABLE>`, and answers are translated back;
- the optimizer takes the text after the first opening tag, even if the reply was cut off; here `answers` reads it.

Source: Yuksekgonul et al., "TextGrad: Automatic Differentiation via Text", arXiv 2406.07496.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

_LOADING = threading.Lock()  # two runs of one process may want TextGrad at the same moment
OPEN, CLOSE = "<IMPROVED_VARIABLE>", "</IMPROVED_VARIABLE>"
DOCUMENT_ROLE = "prompt document for a language model: system turn, question template and demonstrations"
REPLY_ROLE = "reply of the language model"
# What follows the critique of a failure in the optimizer's request: the words of the reward itself.
REWARD_SAYS = "What the reward itself says of this reply: "
_ANSWER_FORMAT = "This is very important: You MUST"  # begins the answer format in the optimizer's system prompt
# The document is in each request once, as the variable; repeating it as the system prompt would only cost tokens.
SYSTEM_PROMPT_NOTE = "(made from the prompt document that is to be improved)"

# Every tag that TextGrad's prompts use, and the think blocks of reasoning models, which `answers` skips.
_NAMES = (
    "IMPROVED_VARIABLE|VARIABLE|ROLE|CONTEXT|CONVERSATION|FEEDBACK(?:-\\d+)?|LM_SYSTEM_PROMPT|LM_INPUT|LM_OUTPUT|"
    "OBJECTIVE_FUNCTION|CONSTRAINTS|EXAMPLES|PAST_ITERATIONS|FOCUS|think|thinking"
)
_TAG = re.compile(rf"<(\\*)(?=\s*/?\s*(?:{_NAMES})\b)", re.IGNORECASE)
_NEUTRAL_TAG = re.compile(rf"<\\(\\*)(?=\s*/?\s*(?:{_NAMES})\b)", re.IGNORECASE)
_REPLY_TAG = re.compile(r"<(/?)(IMPROVED_VARIABLE|think|thinking)>", re.IGNORECASE)


class ShownFailure(NamedTuple):
    """A failing rollout as the editor sees it; all three texts are neutralised (see `neutralise`)."""

    question: str
    reply: str
    feedback: str


class Request(NamedTuple):
    """A request to the editor's chat model."""

    system_prompt: str
    prompt: str


def critique_request(document: str, failure: ShownFailure) -> Request:
    """Build the request of TextGrad's backward pass: how did the document cause this failure?

    Args:
        document: The rendered prompt, neutralised.
        failure: The failing reply, with its question and feedback.
    """
    load_textgrad()
    from textgrad.autograd import llm_backward_prompts as templates

    template = (
        templates.CONVERSATION_START_INSTRUCTION_CHAIN
        + templates.OBJECTIVE_INSTRUCTION_CHAIN
        + templates.EVALUATE_VARIABLE_INSTRUCTION
    )
    values = {"conversation": _conversation(failure), "response_gradient": failure.feedback}
    return Request(templates.BACKWARD_SYSTEM_PROMPT, template.format(**_variable(document), **values))


def improve_request(
    document: str, failures: Sequence[ShownFailure], critiques: Sequence[str], constraints: Sequence[str]
) -> Request:
    """Build the request of TextGrad's optimizer step (textual gradient descent): write a better document.

    Args:
        document: The rendered prompt, neutralised.
        failures: The failures that were criticised.
        critiques: One neutralised critique per failure.
        constraints: Rules that the new document must follow; at least one.
    """
    load_textgrad()
    from textgrad.optimizer.optimizer_prompts import GRADIENT_TEMPLATE

    gradients = [
        GRADIENT_TEMPLATE.format(**_variable(document), context=_conversation(failure), feedback=critique)
        for failure, critique in zip(failures, critiques, strict=True)
    ]
    return step_request(document, "\n".join(gradients), constraints)


def step_request(document: str, context: str, constraints: Sequence[str], answer_format: str = "") -> Request:
    """Build the request of TextGrad's optimizer step around a context.

    Args:
        document: The rendered prompt, neutralised.
        context: What is known of the document: TextGrad's gradients, or a briefing.
        constraints: Rules that the new document must follow; at least one.
        answer_format: How to answer, in the place of TextGrad's own format.
    """
    load_textgrad()
    from textgrad.optimizer import optimizer_prompts as templates

    tags = {"new_variable_start_tag": OPEN, "new_variable_end_tag": CLOSE}
    numbered = "\n".join(f"Constraint {number}: {text}" for number, text in enumerate(constraints, 1))
    prompt = str(
        templates.construct_tgd_prompt(
            do_constrained=True, **_variable(document), **tags, variable_grad=context, constraint_text=numbered
        )
    )
    system = str(templates.OPTIMIZER_SYSTEM_PROMPT.format(**tags))
    if answer_format:
        prompt = prompt.removesuffix(templates.TGD_PROMPT_SUFFIX.format(**tags)) + answer_format
        system = system.partition(_ANSWER_FORMAT)[0].strip()
    return Request(system, prompt)


def _variable(document: str) -> Mapping[str, str]:
    return {"variable_desc": DOCUMENT_ROLE, "variable_short": document, "response_desc": REPLY_ROLE}


def _conversation(failure: ShownFailure) -> str:
    from textgrad.autograd.llm_backward_prompts import CONVERSATION_TEMPLATE

    values = {"system_prompt": SYSTEM_PROMPT_NOTE, "prompt": failure.question, "response_value": failure.reply}
    return str(CONVERSATION_TEMPLATE.format(**values))


def neutralise(text: str) -> str:
    """Put a backslash into each of TextGrad's tags, so that the text can neither open nor close one."""
    return _TAG.sub(r"<\\\1", text)


def restore(text: str) -> str:
    """Undo `neutralise`: `restore(neutralise(text)) == text` for every text."""
    return _NEUTRAL_TAG.sub(r"<\1", text)


def answers(reply: str) -> list[str]:
    """Find the complete answer blocks of a reply, first to last, outside think blocks. Linear in the reply's length.

    A block that was opened twice begins at the last opening tag. A closing think tag without an opening one ends a
    think block that the chat template had opened, so blocks before it do not count.
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


@functools.cache
def load_textgrad() -> ModuleType:
    """Import TextGrad without side effects: no file in the working directory, no request, no log of prompts.

    The client libraries of its own engines, litellm and openai, are imported only when one of those engines is used,
    which this project never does: 0.3 s of CPU instead of 5.0 (2026-11, two cores of an AMD EPYC).
    """
    with (
        _LOADING,
        _import_later("litellm", "completion"),
        _import_later("openai", "OpenAI"),
        tempfile.TemporaryDirectory(prefix="nslora-textgrad-", ignore_cleanup_errors=True) as folder,
    ):
        before = os.environ.get("TEXTGRAD_LOG_DIR")
        os.environ["TEXTGRAD_LOG_DIR"] = folder
        try:
            import textgrad
        finally:
            del os.environ["TEXTGRAD_LOG_DIR"]
            os.environ.update({} if before is None else {"TEXTGRAD_LOG_DIR": before})
        _silence(logging.getLogger("textgrad"))
    return textgrad  # type: ignore[no-any-return]  # the library has no type information


def _silence(logger: logging.Logger) -> None:
    """Stop TextGrad's logger, which writes every prompt and reply in full; they may hold the user's data."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.CRITICAL + 1)


@contextmanager
def _import_later(module: str, name: str) -> Iterator[None]:
    """Within the block, `from module import name` gives a function that imports the module when it is called.

    A module that is already imported is left as it is.
    """
    if module in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(module)
    setattr(stand_in, name, lambda *args, **kwargs: getattr(importlib.import_module(module), name)(*args, **kwargs))
    sys.modules[module] = stand_in
    try:
        yield
    finally:
        del sys.modules[module]
