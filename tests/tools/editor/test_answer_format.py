"""Structured output: an editor fills in the sections of the document as fields."""

import json
from typing import Any

import pytest
from edits import NEW, OLD, StructuredChat, counted, failure, texts
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda

from nslora.tools.editor.answer_format import DocumentForm, SystemForm
from nslora.tools.editor.calls import EditorCalls
from nslora.tools.editor.editor import Caps, EditFailedError, Editor
from nslora.tools.prompt import Prompt
from nslora.tools.testing.scripted_chat import improved


def test_a_form_is_part_of_the_reservation() -> None:
    def reserved(**options: Any) -> int:
        calls = EditorCalls(StructuredChat([]), caps=Caps(tokens=1, reply_tokens=1))
        with pytest.raises(EditFailedError) as caught:
            calls.ask([HumanMessage("Edit!")], "improve 1", **options)
        return int(str(caught.value).partition("may need ")[2].partition(";")[0])

    assert reserved(form=SystemForm) - reserved() > len(json.dumps(SystemForm.model_json_schema()))


def test_structured_output_is_used_where_the_model_has_it() -> None:
    pair = {"question": "Who?", "reply": "ADA"}
    filled = {"system": NEW.system, "question_template": NEW.template, "demonstrations": [pair]}
    chat = StructuredChat(["critique", json.dumps(filled)])
    assert Editor(chat).edit(OLD, [failure()]).prompts == (NEW,)
    assert chat.asked_for == [DocumentForm]


@pytest.mark.parametrize("system", ["Reply in capitals.", "<IMPROVED_VARIABLE>Reply in capitals.</IMPROVED_VARIABLE>"])
def test_the_form_has_the_fields_of_the_part_that_may_change(system: str) -> None:
    chat = StructuredChat(["critique", json.dumps({"system": system})])
    edit = Editor(chat, edit="system").edit(OLD, [failure()])
    assert edit.prompts == (Prompt("Reply in capitals.", OLD.template, OLD.demonstrations),)
    assert chat.asked_for == [SystemForm]


def test_a_form_that_makes_no_valid_document_is_told_what_is_wrong() -> None:
    filled = [json.dumps({"question_template": text}) for text in ("Answer!", "{question}?")]
    chat = StructuredChat(["critique", *filled])
    edit = Editor(chat, edit="question").edit(OLD, [failure()])
    assert edit.prompts[0].template == "{question}?"
    assert "exactly once" in texts(chat.requests[-1])[3]


def test_what_a_form_says_of_tags_stays_as_it_is() -> None:
    said = "Close with </IMPROVED_VARIABLE> and <think>."
    chat = StructuredChat(["critique", json.dumps({"system": said})])
    assert Editor(chat, edit="system").edit(OLD, [failure()]).prompts[0].system == said


def test_structured_output_can_be_turned_off() -> None:
    chat = StructuredChat(["critique", improved(NEW)])
    assert Editor(chat, structured="never").edit(OLD, [failure()]).prompts == (NEW,)
    assert chat.asked_for == []


@pytest.mark.parametrize(
    "filled",
    [{"demonstrations": [{"q": "Who?"}]}, {"demonstrations": None}, {"system": 3}, ["Be brief."], None, "text"],
)
def test_fields_that_are_not_the_forms_are_read_as_what_was_said(filled: Any) -> None:
    class Loose(StructuredChat):
        """A method that checks nothing of what it parses."""

        def with_structured_output(self, schema: Any, **_: Any) -> Any:
            return RunnableLambda(lambda messages: {"raw": self.invoke(messages), "parsed": filled})

    chat = Loose(["critique", "no document", counted(improved(NEW))])
    edit = Editor(chat).edit(OLD, [failure()])
    assert edit.prompts == (NEW,)
    assert "no complete" in texts(chat.requests[-1])[3]  # told, and asked again
    assert edit.usage.input_tokens > 100


@pytest.mark.parametrize(
    "error",
    [
        ValueError("tool choice is not supported"),
        ImportError("no such package"),
        AttributeError("bind_tools"),
        KeyError("x"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_model_that_cannot_fill_in_a_form_after_all_writes_tags(error: Exception, at_once: bool) -> None:
    class Unable(StructuredChat):
        def with_structured_output(self, schema: Any, **_: Any) -> Any:
            def fail(messages: Any) -> Any:
                raise error

            if at_once:
                raise error
            return RunnableLambda(fail)

    chat = Unable(["critique", improved(NEW)])
    assert Editor(chat).edit(OLD, [failure()]).prompts == (NEW,)
    assert len(chat.requests) == 2
    if not at_once:
        with pytest.raises(EditFailedError, match=type(error).__name__):
            Editor(Unable(["critique", improved(NEW)]), structured="always").edit(OLD, [failure()])
