"""A name in braces is a variable; braces of JSON and LaTeX are text."""

import pytest

from nslora.tools.errors import PromptError
from nslora.tools.prompt import Demonstration, Prompt, check_prompt
from nslora.tools.prompt_variables import fill, fold, variables

COLUMNS = ("question", "context", "input", "answer", "Question text", "n")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{context} {{question}} {{ input }}", ["context", "question", "input"]),
        ("{answers.text}{context}", ["answers.text", "context"]),
        ("{Question text}", ["Question text"]),
        ('{"context": "{context}"}', ["context"]),
        ('{"a": 1} {} { context } {1} {a b} {{"a": {}}}', []),
        (r"\boxed{answer} \frac{n}{context} \text{n}", []),
        (r"\sqrt[n]{context} x^{n} a_{n} \frac{\sqrt{n}}{n}", []),
        (r"\begin{cases} {context} \end{cases}", ["context"]),
        (r"Q:\n{context}", ["context"]),
        ("größe: {größe}", ["größe"]),
        ("{context", []),
    ],
)
def test_bare_names_in_braces_are_variables(text, names):
    assert [each.name for each in variables(text, COLUMNS)] == names


def test_what_is_put_in_is_not_searched_for_variables():
    assert fill("{a}{b}", {"a": "{b}", "b": "{question}"}.__getitem__) == "{b}{question}"


@pytest.mark.parametrize(
    ("template", "whole", "question"),
    [
        ("Q: {question}", "Q: {question}", None),
        ("Q: {{question}}", "Q: {question}", None),
        ("Q: {{ question }} \\boxed{answer}", "Q: {question} \\boxed{answer}", None),
        ("Read.\nC: {context}\n\nQ: {question}\nA:", "Read.\n{question}\nA:", "C: {context}\n\nQ: {question}"),
        ("{input}", "{question}", "{input}"),
        ("{context}{{input}}!", "{question}!", "{context}{{input}}"),
    ],
)
def test_columns_move_into_the_question(template, whole, question):
    assert fold(template, COLUMNS) == (whole, question)


def test_a_variable_that_is_no_column_is_refused_with_the_columns():
    with pytest.raises(PromptError, match=r"\{passage\}, which is no column \(columns: question, context, input"):
        fold("{passage} {question}", COLUMNS)


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        (Prompt(template="{{question}}"), r"writes {{question}}: write {question}, in single braces"),
        (Prompt(template="{context}\n{question}"), "(columns: question, context"),
        (Prompt(template="{question}\n{{passage}}"), "(columns: question, context"),
        (Prompt("Use {context}."), "The system turn uses {context}, but nothing is filled in there"),
        (Prompt("Answer {question}."), "The system turn uses {question}"),
    ],
)
def test_an_edit_with_another_variable_is_refused_with_the_columns(prompt, part):
    with pytest.raises(PromptError) as caught:
        check_prompt(prompt, columns=COLUMNS)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt('Reply as {"answer": "..."} or {city}.', 'Q: {question}\nJSON: {"a": {"b": 1}}'),
        Prompt("", r"{question} Put it into \boxed{answer}, with x^{n} and \frac{n}{context}."),
        Prompt("", "{question} { context }", (Demonstration("{context}?", "{answer}"),)),
    ],
)
def test_braces_that_are_text_are_accepted_in_an_edit(prompt):
    check_prompt(prompt, columns=COLUMNS)
