"""Layouts, spans and content repairs: text only, no reward."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nslora.tools.classifier.answer_core import CoreBook
from nslora.tools.classifier.answer_spans import Span, replace, spans
from nslora.tools.classifier.layouts import Layout, LayoutBook, align, learn_layouts, states

QUESTION = "In which year was the Velmar bridge opened?"


@dataclass(frozen=True)
class Row:
    id: str
    question: str
    reference: str | None
    fields: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Good:
    example: Row
    reply: str


def good(reply, reference, question=QUESTION):
    return Good(Row("r", question, reference), reply)


@pytest.mark.parametrize(
    ("reply", "reference", "layout"),
    [
        ('{"answer": "1911"}', "1911", Layout('{"answer": "', '"}', escaped=True)),
        ('{"answer": 42}', "42", Layout('{"answer": ', "}")),
        ("ANSWER: Paris [END]", "Paris", Layout("ANSWER: ", " [END]")),
        ("- PARIS", "Paris", Layout("- ", "", case="upper")),
        ("paris", "Paris", Layout(case="lower")),
        ("1911", "in 1911", Layout()),  # the part of the reference that the reply holds
        ("Dear all,\nParis\nBye", "Paris", Layout("Dear all,\n", "\nBye")),
        ("It is in 1112, 11!", "11", Layout("It is in 1112, ", "!")),
    ],
)
def test_a_layout_is_what_stands_around_the_reference(reply, reference, layout):
    assert align(reply, reference) == layout


def test_a_good_reply_that_does_not_hold_its_reference_teaches_no_layout():
    assert learn_layouts([good("Yes.", "Paris"), good("x", None)]) == []


def test_the_most_frequent_layouts_come_first_and_no_more_than_asked():
    replies = [good("- 1911", "1911"), good("Year: 1864", "1864"), good("- 1738", "1738"), good("<1>", "1")]
    assert learn_layouts(replies, limit=2) == [Layout("- "), Layout("<", ">")]


def test_a_layout_that_restates_the_question_takes_each_rows_own():
    (layout,) = learn_layouts([good("Who leads? Mira Holt", "Mira Holt", "Who leads?")])
    assert layout.wrap("Oslo", "Where is it?") == "Where is it? Oslo"


@given(st.text(min_size=1, max_size=30))
def test_an_escaped_layout_makes_valid_json_of_any_text(core):
    layout = Layout('{"answer": "', '"}', escaped=True)
    assert json.loads(layout.wrap(core, "q")) == {"answer": core}


def test_the_slot_of_a_layout_is_found_and_another_shape_is_not():
    layout = Layout('{"answer": "', '"}', escaped=True)
    reply = ' {"answer": "Lyon"}\n'
    slot = layout.slot(reply, QUESTION)
    assert reply[slot.start : slot.end] == "Lyon"
    assert layout.slot('{"answer": "Lyon", "sure": "no"}', QUESTION) is None
    assert layout.slot("Lyon", QUESTION) is None


@pytest.mark.parametrize(
    ("reply", "reference", "expected"),
    [
        ("It was opened in 1911.", "in 1911", True),
        ("It was 1,911 tons", "1911", True),
        ("PARIS!", "Paris", True),
        ("111", "11", False),  # whole words only
        ("the year 1912", "in 1911", False),
        ('{"answer": "two\\nlines"}', "two\nlines", True),
        ("a red vest and boots", "boots and a red vest", False),
    ],
)
def test_a_reply_states_its_reference_in_any_case_and_layout(reply, reference, expected):
    assert states(reply, reference) is expected


def text_of(reply, core, layouts=(), question=QUESTION):
    return [reply[span.start : span.end] for span in spans(reply, core, question, layouts)]


@pytest.mark.parametrize(
    ("reply", "core", "first"),
    [
        ('{"answer": "Lyon"}', "Paris", "Lyon"),
        ("The Velmar bridge was opened in 1864.", "1911", "1864"),
        ("I believe that Velmar stands in Lyon.", "Paris", "Lyon"),
        ("It has 3 arches and 40 lamps and weighs 7 tons", "40", "40"),
        ("a blue hairnet", "steel-toe boots and a red vest", "a blue hairnet"),
        ("- Lyon", "Paris", "Lyon"),
    ],
)
def test_the_first_span_is_the_answer(reply, core, first):
    assert text_of(reply, core)[0] == first


def test_at_most_three_spans_are_found_all_inside_the_reply():
    reply = "Perhaps 1900 or 1901 or 1902 or 1903 or 1904."
    found = spans(reply, "1911", QUESTION, [])
    assert len(found) == 3
    assert all(0 <= span.start < span.end <= len(reply) for span in found)


@given(st.text(max_size=80), st.text(min_size=1, max_size=20), st.text(max_size=40))
def test_no_text_breaks_the_search(reply, core, question):
    for span in spans(reply, core, question, [Layout("- "), Layout(), Layout('{"a": "', '"}', escaped=True)]):
        assert 0 <= span.start <= span.end <= len(reply)
        replace(reply, span, core)
    align(reply, core)
    states(reply, core)


def test_a_content_repair_never_replaces_more_than_half_of_a_long_reply():
    reply = "One two three four five six seven eight"
    assert replace(reply, Span(0, 22), "Paris") is None
    assert replace(reply, Span(0, 3), "Paris") == "Paris two three four five six seven eight"


def test_a_content_repair_keeps_case_and_escaping():
    assert replace("IT IS LYON!", Span(6, 10), "Paris") == "IT IS PARIS!"
    assert replace("it is lyon", Span(6, 10), "Paris") == "it is paris"
    reply = '{"answer": "Lyon"}'
    assert json.loads(replace(reply, Span(12, 16), 'the "old" town')) == {"answer": 'the "old" town'}


def test_sentences_offer_their_answer_as_core():
    reasoning = "There are 3 boxes of 4 pens, so 3 * 4 = 12 pens.\n#### 12"
    assert CoreBook().likely(reasoning, "How many pens are in 3 boxes of 4 pens?")[0] == "12"
    assert "Mira Holt" in CoreBook().likely("The team is led by Mira Holt today", "Who leads the team?")


def test_a_guessed_layout_that_never_works_is_given_up_after_three_rows():
    book = LayoutBook([], 3)
    for _ in range(3):
        for layout in book.candidates():
            book.note(layout, layout.case == "upper")
    assert book.candidates() == [Layout(case="upper")]
