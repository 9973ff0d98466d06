"""A value in another notation is a fault of form, another value a fault of content."""

import json
from collections.abc import Callable

import pytest

from nslora.tools.classifier.answer_values import find_value
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.rewards.functions import callable_check
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example

DATES = ("2010-07-04", "2024-05-01", "1999-12-31", "2001-02-13", "1987-06-15")
PEOPLE = tuple(
    json.dumps({"name": name, "age": age, "city": city})
    for name, age, city in (
        ("Ann", 5, "Rome"),
        ("Bob", 7, "Oslo"),
        ("Cid", 9, "Lima"),
        ("Dee", 4, "Bern"),
        ("Eve", 8, "Riga"),
    )
)
NUMBERS = ("3", "5", "21", "2", "9")
LETTERS = ("A", "B", "C", "D", "A")


def exactly(example: Example, reply: str) -> float:
    return float(reply.strip() == example.reference)


def same_data(example: Example, reply: str) -> float:
    try:
        return float(json.loads(reply) == json.loads(example.reference or ""))
    except ValueError:
        return 0.0


def older(person: str) -> str:
    known = json.loads(person)
    return json.dumps({**known, "age": known["age"] + 1})


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize(
    ("references", "replies", "verdict"),
    [
        (DATES, ("July 4, 2010", "It was on 1 May 2024.", "31st of December 1999", "13/02/2001"), "form"),
        (DATES, ("July 5, 2010", "3 May 2024", "30 December 1999", "02/14/2001"), "both"),
        (DATES, ("2010-07-05", "2024-05-02", "1999-12-30", "2001-02-14"), "content"),
        (
            PEOPLE,
            ("Name: Ann\nAge: 5\nCity: Rome", "Bob is 7 and lives in Oslo.", "Cid, 9, Lima", "Dee/4/Bern"),
            "form",
        ),
        (
            PEOPLE,
            ("Name: Ann\nAge: 6\nCity: Rome", "Name: Bob\nAge: 8\nCity: Oslo", "Name: Cid\nAge: 1\nCity: Lima"),
            "both",
        ),
        (PEOPLE, tuple(map(older, PEOPLE[:4])), "content"),
        (NUMBERS, ("three", "Five", "twenty-one", "There are two."), "form"),
        (NUMBERS, ("four", "six", "twenty two", "three"), "both"),
        (NUMBERS, ("4", "6", "22", "3"), "content"),
        (LETTERS, ("A) Bern", "B) Oslo", "The answer is C.", "D."), "form"),
        (LETTERS, ("B", "C", "D", "A"), "content"),
    ],
)
def test_another_notation_is_form_and_another_value_content(
    references: tuple[str, ...], replies: tuple[str, ...], verdict: str, good: int
) -> None:
    judge: Callable[[Example, str], float] = same_data if references is PEOPLE else exactly
    reward = Reward([callable_check(judge)])
    rows = [Example(f"row-{i}", f"Question {i}?", reference, {}) for i, reference in enumerate(references)]
    failures = [Graded(row, reply, reward(row, reply)) for row, reply in zip(rows, replies, strict=False)]
    known = [Graded(row, row.reference or "", reward(row, row.reference or "")) for row in rows[-1:] * good]
    found = classify_failures(failures, reward, known_good=known, train=rows)
    assert {each.verdict for each in found} == {verdict}


@pytest.mark.parametrize(
    ("reply", "core", "stated"),
    [
        ("on July 4, 2010", "2010-07-04", "July 4, 2010"),
        ("4/7/2010", "2010-07-04", "4/7/2010"),
        ("July 4, 2010 or May 1, 2011", "2010-07-04", None),
        ("July 2010", "2010-07-04", None),
        ("2010-07-04", "2010-07-04", None),
        ("in 1911", "1911", None),
        ("99/99/2010", "2010-07-04", None),
        ("twenty-one mills", "21", "twenty-one"),
        ("21 mills", "twenty-one", "21"),
        ("three, and the answer is 8", "3", None),
        ("one of them", "1", None),
        ("One", "1", "One"),
        ("3.5", "three", None),
        ("9" * 5000, "3", None),
        ("It is 3.", "three", "3."),
        ("", "3", None),
        ("Ann, 5", '{"a": "Ann", "b": 5}', "Ann, 5"),
        *[
            (reply, core, None)
            for reply, core in (
                ("two hundred", "2"),
                ("one hundred and five", "5"),
                ("three million", "3"),
                ("the twenty-first century", "20"),
                ("two thirds", "2"),
                ("minus five", "5"),
                ("3 million people", "three"),
                ("-3", "three"),
            )
        ],
        ('{"b": 1, "a": 2}', '{"a": 1, "b": 2}', None),
        ('{"x": 1, "y": 2}', '{"a": 1, "b": 2}', '{"x": 1, "y": 2}'),
        ("[2, 1]", "[1, 2]", None),
        ("Ann", '{"a": "Ann", "b": null}', None),
        ("Ann", "{not json}", None),
    ],
)
def test_a_value_is_found_if_it_is_stated_and_no_other_beside_it(reply: str, core: str, stated: str | None) -> None:
    found = find_value(reply, core)
    assert (None if found is None else reply[found.start : found.end]) == stated
