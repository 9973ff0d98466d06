"""Named sections of the prompt document: put in by name, refused if no turn holds them, protected from edits."""

from collections.abc import Callable

import pytest
from edits import failure

from nslora.tools.editor.answer_format import format_rules, read_prompt
from nslora.tools.editor.editor import Editor
from nslora.tools.editor.failures_view import describe_edit
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.editor.textual_gradients import CLOSE, OPEN
from nslora.tools.errors import PromptError, TaskError
from nslora.tools.prompt import Demonstration, Prompt, Section, check_prompt, parse
from nslora.tools.tasks.task import task_from_rows

STYLE, ROLE = Section("house-style", "Write {a}.\n# Never\nshout.", protected=True), Section("role", "You are Bo.")
PROMPT = Prompt(
    "{section:role} Be brief.", "{section:house-style}\nQ: {question}", (Demonstration("Who?", "Ada"),), (STYLE, ROLE)
)
ROWS = [{"question": f"Who, {c}?", "context": c, "reference": c} for c in "abcdef"]


def test_sections_are_put_in_where_the_turns_name_them() -> None:
    style = "Write {a}.\n# Never\nshout."
    assert [turn["content"] for turn in PROMPT.messages("Why {question}{section:role}?")] == [
        "You are Bo. Be brief.",
        f"{style}\nQ: Who?",
        "Ada",
        f"{style}\nQ: Why {{question}}{{section:role}}?",
    ]


def test_the_document_has_a_heading_for_each_section_and_is_read_back() -> None:
    document = PROMPT.render()
    assert (
        "# Section house-style (protected)\n\nWrite {a}.\n\\# Never\nshout.\n\n# Section role\n\nYou are Bo."
        in document
    )
    assert parse(document) == PROMPT
    assert parse(f"```\n{document.replace('# Section role', '#  section role :')}```\r\n") == PROMPT
    assert parse("# Section a\nx\n# Question template\n{question}{section:a}").sections == (Section("a", "x"),)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Prompt("{section:rules}"), "{section:rules} names no section (sections: none)"),
        (lambda: Prompt("{section:rules}", sections=(ROLE,)), "names no section (sections: role): add"),
        (lambda: Prompt("{section:role}", sections=(ROLE, ROLE)), "The section 'role' comes twice"),
        (lambda: Prompt(sections=(Section("two words", "x"),)), "its name is not one word"),
        (lambda: check_prompt(Prompt(sections=(ROLE,))), "No turn holds the section role: write {section:role}"),
        (lambda: check_prompt(Prompt("{section:s}", sections=(Section("s", "See {context}."),)), columns=["context"]),
         "uses {context}"),
        (lambda: parse("# Section a b\nx\n# Question template\n{question}"), '"# Section a b" is unknown'),
        (lambda: check_prompt(Prompt("{section:s}", sections=(Section("s", "Who built the old mill?"),)),
                              forbidden_questions=["Who built the old mill?"]), "or a section quotes"),
    ],
)  # fmt: skip
def test_a_prompt_with_wrong_sections_is_refused(make: Callable[[], object], part: str) -> None:
    with pytest.raises(PromptError) as caught:
        make()
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("template", "part"),
    [("{question}", "No turn holds the section s"), ("{context}{section:s}{question}", "stands among the columns")],
)
def test_a_task_whose_turns_hold_no_such_section_is_refused(template: str, part: str) -> None:
    document = f"# Section s\n\nBe brief.\n\n# Question template\n\n{template}"
    with pytest.raises(TaskError) as caught:
        task_from_rows(train=ROWS[:2], validation=ROWS[2:4], test=ROWS[4:], prompt=document)
    assert part in str(caught.value)
    fine = document.replace(template, "{section:s}\nC: {context}\nQ: {question}")
    task = task_from_rows(train=ROWS[:2], validation=ROWS[2:4], test=ROWS[4:], prompt=fine)
    assert task.prompt.dialogue(task.train[0])[-1]["content"] == "Be brief.\nC: a\nQ: Who, a?"


def edited(document: str, part: str = "document") -> Prompt:
    return read_prompt(f"{OPEN}{document}{CLOSE}", PROMPT, part)  # type: ignore[arg-type]


def test_an_edit_that_leaves_protected_sections_out_keeps_them() -> None:
    new = edited("# System\nBe kind.\n# Question template\n{section:house-style} {question}")
    assert new == Prompt("Be kind.", "{section:house-style} {question}", (), (STYLE,))
    assert edited("# System\n{section:role} Be kind.", "system") == Prompt(
        "{section:role} Be kind.", PROMPT.template, PROMPT.demonstrations, PROMPT.sections
    )
    assert edited(PROMPT.render().replace(" (protected)", "").replace("Bo", "Al")).sections == (
        STYLE,
        Section("role", "You are Al."),
    )
    assert edited(PROMPT.render().replace("role\n", "role (protected)\n")).sections[1] == ROLE


@pytest.mark.parametrize(
    ("document", "part"),
    [
        (PROMPT.render().replace("Write", "Say"), "The section house-style is protected: leave its text as it is"),
        (PROMPT.render().replace("{section:house-style}\nQ", "Q"), "No turn holds the section house-style"),
        ("# System\n{section:role}\n# Question template\n{section:house-style}{question}", "{section:role} names no"),
    ],
)
def test_an_editor_that_changes_or_drops_a_protected_section_is_told_why(document: str, part: str) -> None:
    with pytest.raises(PromptError) as caught:
        check_prompt(edited(document))
    assert part in str(caught.value)


def test_editors_are_told_of_sections_only_if_there_are_some() -> None:
    assert format_rules("document", ()) == format_rules("document")
    assert "{section:NAME}" in format_rules("document", PROMPT.sections)[0]
    assert "protected" not in format_rules("document", (ROLE,))[0]
    changed = Prompt(PROMPT.system, PROMPT.template, PROMPT.demonstrations, (STYLE, Section("role", "You are Al.")))
    assert describe_edit(PROMPT, changed) == 'The section role became "You are Al.".'


def test_the_rule_editor_keeps_the_sections() -> None:
    edit = Editor(RuleEditor()).edit(PROMPT, [failure(right="ADA")])
    assert edit.prompts[0].sections == PROMPT.sections
    assert edit.prompts[0] != PROMPT
