"""Structured output: an editor fills in the sections of the document as fields, and both ways of writing are read."""

import json
from pathlib import Path
from typing import Any

import pytest
from edits import NEW, OLD, StructuredChat, counted, failure, texts
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from nslora.tools.editor.answer_format import DocumentForm, SystemForm, read_prompt
from nslora.tools.editor.call_log import EditorLog, RecordedCall, RecordedChat, request_sha256
from nslora.tools.editor.calls import EditorCalls
from nslora.tools.editor.editor import Caps, EditFailedError, Editor
from nslora.tools.errors import EditorCallError
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.testing.scripted_chat import ScriptedChat, improved


def test_the_schema_is_part_of_the_reservation() -> None:
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
def test_the_schema_has_the_fields_of_the_part_that_may_change(system: str) -> None:
    chat = StructuredChat(["critique", json.dumps({"system": system})])
    edit = Editor(chat, edit="system").edit(OLD, [failure()])
    assert edit.prompts == (Prompt("Reply in capitals.", OLD.template, OLD.demonstrations),)
    assert chat.asked_for == [SystemForm]


def test_fields_that_make_no_valid_prompt_are_sent_back_with_the_reason() -> None:
    filled = [json.dumps({"question_template": text}) for text in ("Answer!", "{question}?")]
    chat = StructuredChat(["critique", *filled])
    edit = Editor(chat, edit="question").edit(OLD, [failure()])
    assert edit.prompts[0].template == "{question}?"
    assert "exactly once" in texts(chat.requests[-1])[3]


def test_tags_inside_a_field_stay_as_they_are() -> None:
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
def test_if_the_fields_do_not_fit_the_schema_the_raw_text_is_read(filled: Any) -> None:
    class Loose(StructuredChat):
        """Its structured output is not validated."""

        def with_structured_output(self, schema: Any, **_: Any) -> Any:
            return RunnableLambda(lambda messages: {"raw": self.invoke(messages), "parsed": filled})

    chat = Loose(["critique", "no document", counted(improved(NEW))])
    edit = Editor(chat).edit(OLD, [failure()])
    assert edit.prompts == (NEW,)
    assert "no complete" in texts(chat.requests[-1])[3]  # told, and asked again
    assert edit.usage.input_tokens > 100


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"improved": "Be brief."}, "Field required of system"),
        ({"system": ["Be brief."]}, "Input should be a valid string of system"),
        ('{"system": "Be br', "Invalid JSON"),
    ],
)
def test_a_tool_call_of_another_form_is_told_which_one_is_wanted(arguments: Any, told: str) -> None:
    class Calls(StructuredChat):
        """Fills in fields by a tool call, which has no text."""

        def with_structured_output(self, schema: Any, **_: Any) -> Any:
            def call(messages: Any) -> Any:
                if (said := self.invoke(messages)).text != "call":
                    return {"raw": said, "parsed": json.loads(said.text)}
                kind = "invalid_tool_calls" if isinstance(arguments, str) else "tool_calls"
                made: Any = {kind: [{"name": "SystemForm", "args": arguments, "id": "1"}]}
                return {"raw": AIMessage("", **made), "parsed": None}

            return RunnableLambda(call)

    chat = Calls(["critique", "call", json.dumps({"system": "Reply in capitals."})])
    edit = Editor(chat, edit="system").edit(OLD, [failure()])
    assert edit.prompts[0].system == "Reply in capitals."
    asked_again = texts(chat.requests[-1])[3]
    assert told in asked_again
    assert 'fill in the fields "system". Send the whole improved variable again, complete, in these' in asked_again
    assert edit.problems == (asked_again.partition("cannot be used. ")[2].partition(" Send the whole")[0],)


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
def test_a_model_without_the_structured_output_that_it_promised_writes_tags(error: Exception, at_once: bool) -> None:
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
        with pytest.raises(EditorCallError, match=type(error).__name__):
            Editor(Unable(["critique", improved(NEW)]), structured="always").edit(OLD, [failure()])


HARD = "# System\n\\# <think> </IMPROVED_VARIABLE> \\~ \x85 \u2028 ``` {x}"


@pytest.mark.parametrize("text", [HARD, "\\", "~", "plain", "a\n\nb"])
def test_fields_and_tags_are_read_as_the_same_prompt(text: str) -> None:
    new = Prompt(text, f"{text} {{question}}", (Demonstration(text, text),))
    pair = {"question": text, "reply": text}
    fields = {"system": text, "question_template": new.template, "demonstrations": [pair]}
    assert read_prompt(json.dumps(fields), OLD, "document") == new
    assert read_prompt(improved(new), OLD, "document") == new
    assert read_prompt(json.dumps(fields), OLD, "question") == Prompt(OLD.system, new.template, OLD.demonstrations)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_no_carriage_return_of_an_editor_comes_into_the_prompt(end: str) -> None:
    new = Prompt("a\n\nb", "Q:\n{question}", (Demonstration("c\nd", "e\nf"),))
    pair = {"question": f"c{end}d", "reply": f"e{end}f"}
    fields = {"system": f"a{end}{end}b", "question_template": f"Q:{end}{{question}}", "demonstrations": [pair]}
    assert read_prompt(json.dumps(fields), OLD, "document") == new
    assert read_prompt(improved(new).replace("\n", end), OLD, "document") == new


def test_filled_in_fields_are_on_record_and_a_replay_reads_the_same_prompt(tmp_path: Path) -> None:
    path = tmp_path / "editor.jsonl"
    replies = [json.dumps({"system": system}) for system in (OLD.system, HARD)]  # the first changes nothing
    edit = Editor(StructuredChat(["critique", *replies]), log=EditorLog(path), edit="system").edit(OLD, [failure()])
    assert [json.loads(call.reply) for call in EditorLog(path).first(3)[1:]] == [*map(json.loads, replies)]
    assert Editor(RecordedChat(path), edit="system").edit(OLD, [failure()]) == edit


def test_a_record_of_fields_from_version_0_1_0_is_found_and_read(tmp_path: Path) -> None:
    """That version recorded the document that the fields stand for, and quoted it in the next request."""
    chat = ScriptedChat(["critique", improved(OLD), improved(NEW)])
    Editor(chat).edit(OLD, [failure()])
    log = EditorLog(tmp_path / "editor.jsonl")
    for request, reply in zip(chat.requests, chat.replies, strict=True):
        log.append(RecordedCall(request_sha256(request), "scripted", "", reply, 1, 1, False, 0.0))
    nobody = StructuredChat([])
    log = EditorLog(tmp_path / "editor.jsonl")
    assert Editor(nobody, log=log).edit(OLD, [failure()]).prompts == (NEW,)
    assert nobody.requests == []
