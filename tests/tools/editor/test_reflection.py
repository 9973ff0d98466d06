"""The reply to one request: rows by number, several documents, repaired near-misses, and faults."""

import json
from typing import Any

import pytest
from edits import NEW, OLD, StructuredChat, failure, texts
from hostile_replies import CLOSE, DOCUMENT, OPEN, UNUSABLE
from langchain_core.messages import AIMessage

from nslora.tools.editor.briefing import Row, Situation
from nslora.tools.editor.editor import EditFailedError, Editor
from nslora.tools.editor.local_chat import LLAMA_CPP
from nslora.tools.editor.reflection import AnswerShape, read_reflection, reflection_form
from nslora.tools.errors import PromptError
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example
from nslora.tools.testing.scripted_chat import ScriptedChat, improved

ROWS = (Row("", "Who?", "ADA"), Row("train-1", "Where?", "OSLO"), Row("train-2", "When?", None))
SHOWN = tuple(Demonstration(row.question, str(row.right)) for row in ROWS)


def reply(*documents: Any, analysis: str = "No capitals.") -> str:
    return json.dumps({"analysis": analysis, "documents": documents})


def reflecting(*replies: Any, **options: Any) -> Editor:
    return Editor(ScriptedChat(list(replies)), protocol="reflect", **options)


def test_rows_become_demonstrations_by_their_number_and_several_documents_come_in_one_reply() -> None:
    documents = (
        {"system": "Shout.", "rows": [2, 1]},
        {"system": "Shout!", "rows": [], "question_template": "Q: {question}"},
    )
    found = read_reflection(reply(*documents), OLD, "document", ROWS)
    assert found.analysis == "No capitals."
    assert found.prompts == (Prompt("Shout.", OLD.template, SHOWN[1::-1]), Prompt("Shout!", "Q: {question}"))
    assert found.faults == ()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"rows": ["[2]", "row 1", 2]}, SHOWN[1::-1]),
        ({"rows": 2}, SHOWN[1:2]),
        ({"rows": [1], "replies": [{"row": 3, "reply": "NOW"}]}, (SHOWN[0], Demonstration("When?", "NOW"))),
        ({"rows": [2], "replies": [{"row": 2, "reply": "ROME"}]}, (Demonstration("Where?", "ROME"),)),
        ({"rows": [2], "replies": [{"row": 2, "reply": ""}]}, SHOWN[1:2]),
    ],
)
def test_numbers_are_read_as_small_models_write_them(sent: Any, expected: tuple[Demonstration, ...]) -> None:
    assert read_reflection(reply(sent), OLD, "document", ROWS).prompts[0].demonstrations == expected


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"rows": [9]}, "no row 9: rows have the numbers 1 to 3"),
        ({"rows": [3]}, 'No right reply to row 3 is known: write it under "replies"'),
        ({"rows": [2], "question_template": "Answer!"}, "exactly once"),
        ({"title": "x"}, "none of the fields"),
        ("Shout.", "none of the fields"),
        ({"system": "x" * 50_000}, "far too long"),
        (
            {"system": "Instructions to the language model, for it to read: the form of every right reply."},
            "repeats how it is to be written",
        ),
        ({"system": "Shout. rows: small models follow examples far better than rules"}, "repeats how it is"),
        ({"system": "Send demonstrations to the language model as earlier turns of the chat."}, "repeats how it is"),
        ({"system": "ANSWER: {question} [END]"}, "filled in nowhere but in the template"),
        ({"system": "Shout. " + "The town hall is a symbol of the city. " * 3}, "the same three times in a row"),
    ],
)
def test_a_document_that_cannot_be_used_is_a_fault_and_the_others_stand(document: Any, fault: str) -> None:
    found = read_reflection(reply(document, {"system": "Shout."}), OLD, "document", ROWS)
    assert found.prompts == (Prompt("Shout.", OLD.template, OLD.demonstrations),)
    assert fault in found.faults[0]


REPAIRED = {
    "a fence": f"Sure:\n```json\n{reply({'system': 'S'})}\n```",
    "a document outside the list": json.dumps({"analysis": "No capitals.", "system": "S"}),
    "a list without brackets": json.dumps({"analysis": "No capitals.", "documents": {"system": "S"}}),
    "line ends inside a text": reply({"system": "S"}).replace("No capitals.", "No\ncapitals."),
    "a think block": f"<think>Hm, {{}}</think>{reply({'system': 'S'})}",
    "a heading in the field": reply({"system": "# System\n\nS"}),
    "double braces": reply({"system": "S", "question_template": "{{ question }}"}),
    "tags": f"{OPEN}{Prompt('S', demonstrations=OLD.demonstrations).render()}{CLOSE}",
}


@pytest.mark.parametrize("sent", REPAIRED.values(), ids=REPAIRED)
def test_near_misses_are_repaired(sent: str) -> None:
    assert (
        read_reflection(sent, Prompt("", "{question}", OLD.demonstrations), "document", ROWS).prompts[0].system == "S"
    )


def test_a_lacking_tag_is_repaired_only_if_the_model_ended_the_reply_itself() -> None:
    for sent in (OPEN + DOCUMENT, DOCUMENT, f"Here:\n{OPEN}\n{DOCUMENT}"):
        assert read_reflection(sent, OLD, "document", ROWS, "stop").prompts == (NEW,)
        for reason in ("length", ""):
            with pytest.raises(PromptError, match="cut off"):
                read_reflection(sent, OLD, "document", ROWS, reason)


@pytest.mark.parametrize("sent", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_reply_is_a_failed_edit_and_after_it_a_usable_one_is_taken(sent: str) -> None:
    with pytest.raises(EditFailedError) as caught:
        reflecting(sent, retries=0).edit(OLD, [failure()])
    assert caught.value.usage.calls == 1
    edit = reflecting(sent, improved(NEW)).edit(OLD, [failure()])
    assert (edit.prompts, edit.usage.calls, len(edit.problems)) == ((NEW,), 2, 1)


def test_one_call_is_an_edit_and_its_analysis_is_the_textual_gradient() -> None:
    chat = StructuredChat([reply({"system": "Shout.", "rows": [1]}, {"system": "Louder.", "rows": [1, 2]})])
    failures = [failure(1, right="ADA"), failure(2, right="BOB")]
    edit = Editor(chat, protocol="reflect", rules=["Stay polite."]).edit(
        Prompt(), failures, candidates=2, situation=Situation(goal="Names in capitals.")
    )
    assert [len(prompt.demonstrations) for prompt in edit.prompts] == [1, 2]
    assert edit.critiques == ("No capitals.",)
    assert edit.rows == ("train-1", "train-2")
    assert chat.asked_for == [reflection_form(AnswerShape("document", 2, may_write=False))]
    assert "ReplyForm" not in chat.asked_for[0].model_json_schema()["$defs"]  # each row has a right reply
    (request,) = chat.requests
    system, asked = texts(request)
    assert system.startswith("You are part of an optimization system")
    assert "IMPROVED_VARIABLE" not in system + asked
    for words in ("Names in capitals.", "Stay polite.", "[1] Question: Question 1?", "up to 2 new documents", "<ROLE>"):
        assert words in asked


def test_the_fault_is_shown_once_more_with_the_reply() -> None:
    chat = ScriptedChat([reply({"rows": [7]}), reply({"rows": [1]})])
    edit = Editor(chat, protocol="reflect").edit(Prompt(), [failure(right="ADA")])
    assert edit.prompts[0].demonstrations == (Demonstration("Question 1?", "ADA"),)
    assert "There is no row 7" in texts(chat.requests[1])[3]
    assert '"rows": [7]' in texts(chat.requests[1])[2]


@pytest.mark.parametrize("part", ["system", "question", "demonstrations"])
def test_only_the_part_that_may_change_changes(part: Any) -> None:
    sent = {"system": "S", "question_template": "Q: {question}", "rows": [2]}
    new = read_reflection(reply(sent), OLD, part, ROWS).prompts[0]
    changed = {
        "system": Prompt("S", OLD.template, OLD.demonstrations),
        "question": Prompt(OLD.system, "Q: {question}", OLD.demonstrations),
        "demonstrations": Prompt(OLD.system, OLD.template, SHOWN[1:2]),
    }
    assert new == changed[part]


def test_a_request_keeps_its_limit_and_a_document_without_room_for_rows_is_said(monkeypatch: Any) -> None:
    chat = ScriptedChat([reply({"system": "Shout."})], repeat=True)
    many = [failure(n, reply="r" * 300, right=f"R{n}") for n in range(20)]
    for limit in (1000, 1400, 2000):
        Editor(chat, protocol="reflect", max_input_tokens=limit).edit(OLD, many)
        assert sum(len(text) for text in texts(chat.requests[-1])) <= limit * 3.5
    long = Prompt("word " * 2000)
    with pytest.raises(EditFailedError, match=r"raise editing\.max_input_tokens"):
        Editor(chat, protocol="reflect", max_input_tokens=1000).edit(long, many)
    Editor(chat, protocol="reflect").edit(long, many)  # by default there is room beside the document


def row(number: int, right: str) -> Graded:
    example = Example(f"train-{number}", f"Question {number}?", right, {})
    return Graded(example, "x", Score(0.0, {}, f"For this question, the reply must contain {right!r}.", right))


@pytest.mark.parametrize("protocol", ["reflect", "textgrad"])
@pytest.mark.parametrize(
    ("rule", "refused"),
    [
        ("The response should not contain 'black barley'.", True),
        ('Never say "black barley".', True),
        ("Replies must be exactly 'NONE'.", True),
        ("If no time is given, reply with 'NONE'.", False),
        ("Do not write anything but 'NONE'.", False),
        ("Do not say 'sorry'.", False),
        ("Name the grain and do not explain.", False),
    ],
)
def test_a_rule_against_the_words_of_the_reward_is_refused(rule: str, refused: bool, protocol: Any) -> None:
    chat = ScriptedChat(
        ["critique", "critique", improved(Prompt(rule))] if protocol == "textgrad" else [improved(Prompt(rule))]
    )
    editor = Editor(chat, protocol=protocol, retries=0)
    failures = [row(1, "black barley"), row(2, "NONE")]
    if not refused:
        assert editor.edit(Prompt(), failures).prompts == (Prompt(rule),)
        return
    with pytest.raises(EditFailedError, match="remove the rule, or say when it holds"):
        editor.edit(Prompt(), failures)
    kept = Editor(ScriptedChat([improved(Prompt(rule + " Be brief."))]), protocol="reflect")
    assert kept.edit(Prompt(rule), failures).prompts  # what stood there before is not the editor's


def test_a_model_without_structured_output_is_asked_in_words_and_a_cut_reply_is_not_asked_again() -> None:
    cut = AIMessage(reply({"system": "Shout."})[:40], response_metadata={"finish_reason": "length"})
    with pytest.raises(EditFailedError, match="cut off at its length limit") as caught:
        reflecting(cut, retries=2).edit(OLD, [failure()])
    assert caught.value.usage.calls == 1


def test_whole_documents_before_a_cut_are_taken() -> None:
    """Qwen2.5-Coder-1.5B repeated itself in its third document up to the length limit."""
    rows = (Row("train-1", "Who?", "ADA"), Row("train-2", "Whom?", "BOB"))
    whole = json.dumps({"analysis": "No capitals.", "documents": [{"system": "Shout.", "rows": [1, 2]}] * 2})
    cut = whole.removesuffix("]}") + ', {"system": "Shout, shout, shout, shout'
    found = read_reflection(cut, Prompt(), "document", rows, "length")
    assert (found.analysis, len(found.prompts), found.faults) == ("No capitals.", 2, ())
    assert [each.reply for each in found.prompts[0].demonstrations] == ["ADA", "BOB"]
    begun = '{"analysis": "No capitals.", "documents": [{"rows": [2, 1], "system": "Shout, shout, shout'
    (rows_alone,) = read_reflection(begun, Prompt(system="Be kind."), "document", rows, "length").prompts
    assert (rows_alone.system, [each.reply for each in rows_alone.demonstrations]) == ("Be kind.", ["BOB", "ADA"])
    for nothing in ('{"analysis": "No capitals.", "documents": [{"rows": [2', '{"analysis": "No cap'):
        with pytest.raises(PromptError, match="cut off"):
            read_reflection(nothing, Prompt(), "document", rows, "length")


def test_rows_stand_without_a_system_turn_that_cannot_be_used() -> None:
    found = read_reflection(reply({"rows": [2], "system": "It is 2019 in which " * 20}), OLD, "document", ROWS)
    assert found.prompts == (Prompt(OLD.system, OLD.template, SHOWN[1:2]),)
    assert "three times in a row" in found.faults[0]


@pytest.mark.parametrize("system", ["One sentence.", "Name the city, then its country.", ""])
def test_short_and_lively_system_turns_are_taken(system: str) -> None:
    assert read_reflection(reply({"system": system}), OLD, "document", ROWS).prompts[0].system == system.strip()


def test_of_one_document_its_parts_alone_are_candidates_too() -> None:
    sent = reply({"system": "Shout.", "rows": [1]})
    failures = [failure(1, right="ADA"), failure(2, right="BOB")]
    row = (Demonstration("Question 1?", "ADA"),)
    whole, rows, system = Prompt("Shout.", demonstrations=row), Prompt(demonstrations=row), Prompt("Shout.")
    for candidates, expected in ((1, (whole,)), (2, (whole, rows)), (3, (whole, rows, system))):
        assert reflecting(sent).edit(Prompt(), failures, candidates=candidates).prompts == expected
    one_part = reply({"system": "Shout."})
    assert reflecting(one_part).edit(Prompt(), failures, candidates=3).prompts == (system,)
    two = reply({"system": "Shout.", "rows": [1]}, {"system": "Shout!", "rows": [2]})
    assert len(reflecting(two).edit(Prompt(), failures, candidates=3).prompts) == 2


def test_a_part_alone_that_must_not_be_proposed_is_no_candidate() -> None:
    def keeps_its_rows(prompt: Prompt) -> None:
        if not prompt.demonstrations:
            raise PromptError("The demonstrations must stay.")

    sent = reply({"system": "Shout.", "rows": [1]})
    edit = reflecting(sent).edit(Prompt(), [failure(1, right="ADA")], candidates=3, validate=keeps_its_rows)
    assert [(prompt.system, len(prompt.demonstrations)) for prompt in edit.prompts] == [("Shout.", 1), ("", 1)]


def test_rows_stand_without_a_system_turn_that_contradicts_the_reward() -> None:
    """Three replies of Qwen2.5-Coder-1.5B had such a rule, and rows that were right."""
    rule = "Right replies do not begin with 'ANSWER: '."
    edit = reflecting(reply({"system": rule, "rows": [2]})).edit(OLD, [failure(1, right="ANSWER: ADA")])
    assert edit.prompts == (Prompt(OLD.system, OLD.template, (Demonstration("Question 1?", "ANSWER: ADA"),)),)
    assert "forbids 'ANSWER: '" in edit.problems[0]


class SmallChat(StructuredChat):
    """A scripted model in the place of a GGUF file's."""

    @property
    def _llm_type(self) -> str:
        return LLAMA_CPP


def test_a_small_model_fills_in_one_short_document() -> None:
    chat = SmallChat([json.dumps({"analysis": "No capitals.", "rows": [1], "system": "Shout."})])
    failures = [failure(number, right=f"NAME {number}") for number in range(1, 31)]
    edit = Editor(chat, protocol="reflect").edit(Prompt(), failures, candidates=3)
    assert [prompt.system for prompt in edit.prompts] == ["Shout.", "", "Shout."]
    (form,) = chat.asked_for
    fields = form.model_json_schema()["properties"]
    assert list(fields) == ["analysis", "rows", "system"]  # rows first: they stand if the system turn is cut off
    assert [fields[name].get("maxLength") for name in ("analysis", "system")] == [300, 700]
    asked = texts(chat.requests[0])[1]
    assert "[12] Question" in asked
    for words in ("[13] Question", "documents", "question_template", "Its fields:\n  "):
        assert words not in asked


def test_no_length_is_asked_of_a_server_that_may_refuse_it() -> None:
    for part in ("document", "system"):
        assert "maxLength" not in json.dumps(reflection_form(AnswerShape(part, 3, may_write=False)).model_json_schema())


def test_of_a_flat_answer_that_was_cut_off_the_whole_fields_are_taken() -> None:
    cut = '{"analysis": "No capitals.", "rows": [2, 1], "system": "Shout, sh'
    found = read_reflection(cut, OLD, "document", ROWS, "length")
    assert found.prompts == (Prompt(OLD.system, OLD.template, SHOWN[1::-1]),)
    with pytest.raises(PromptError, match="cut off"):
        read_reflection(cut[:40], OLD, "document", ROWS, "length")


def test_a_small_model_says_whether_the_closed_list_of_answers_is_shown() -> None:
    references = [each for each in ("yes", "no", "unsure") for _ in range(10)]
    for listed, expected in ((True, "Shout.\n\nThe answer is one of: yes; no; unsure"), (False, "Shout.")):
        sent = {"analysis": "No capitals.", "rows": [1], "system": "Shout.", "list_answers": listed}
        chat = SmallChat([json.dumps(sent)])
        told = Situation(references=references)
        edit = Editor(chat, protocol="reflect").edit(Prompt(), [failure(right="ADA")], situation=told)
        assert [prompt.system for prompt in edit.prompts] == [expected]
        assert list(chat.asked_for[0].model_json_schema()["properties"])[-1] == "list_answers"
    without = SmallChat([json.dumps({"analysis": "", "rows": [1], "system": "S", "list_answers": True})])
    edit = Editor(without, protocol="reflect").edit(Prompt(), [failure(right="ADA")])
    assert edit.prompts[0].system == "S"  # there is no list
    assert "list_answers" not in texts(without.requests[0])[1]


def test_the_list_of_answers_stands_without_a_system_turn_that_cannot_be_used() -> None:
    sent = json.dumps({"analysis": "", "rows": [2], "system": "{question}!", "list_answers": True})
    (new,) = read_reflection(sent, OLD, "document", ROWS, answers=("yes", "no")).prompts
    assert new == Prompt("Be brief.\n\nThe answer is one of: yes; no", OLD.template, SHOWN[1:2])
    assert read_reflection(sent, new, "document", ROWS, answers=("yes", "no")).prompts == (new,)  # it stands there


def test_of_rows_that_are_counted_up_without_end_the_first_are_taken() -> None:
    rows = tuple(Row(f"train-{n}", f"Who is {n}?", f"NAME {n}") for n in range(1, 13))
    counted = ", ".join(map(str, range(1, 300)))
    for sent, reason in (
        (f'{{"analysis": "", "rows": [{counted}', "length"),
        (reply({"rows": [*range(1, 99)]}), "stop"),
    ):
        found = read_reflection(sent, OLD, "document", rows, reason)
        assert [each.reply for each in found.prompts[0].demonstrations] == ["NAME 1", "NAME 2", "NAME 3", "NAME 4"]
        assert "There is no row 13" in found.faults[0]
    found = read_reflection('{"rows": [3, 1, 1', OLD, "document", rows, "length")  # the last may have been 12
    assert [each.reply for each in found.prompts[0].demonstrations] == ["NAME 3", "NAME 1"]
