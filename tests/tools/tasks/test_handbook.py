"""The embedded task keeps what it promises: thirty facts, five wordings each, nothing given away."""

import re
from collections import defaultdict

import pytest

from nslora.tools.schema import Example
from nslora.tools.tasks.task import Task, load_task, same_question

STYLES = ("json", "label", "upper", "bullet")
RIGHT = {
    "json": '{{"answer": "{}"}}',
    "label": "ANSWER: {} [END]",
    "bullet": "- {}",
}


@pytest.fixture(scope="module")
def handbook() -> Task:
    return load_task("handbook")


def rows(task: Task) -> list[Example]:
    return [*task.train, *task.validation, *task.test]


def facts(task: Task) -> dict[str, list[Example]]:
    by_key = defaultdict(list)
    for row in rows(task):
        by_key[row.fields["key"]].append(row)
    return dict(by_key)


def test_thirty_facts_have_two_wordings_in_train_one_in_validation_and_two_in_test(handbook):
    keys = set(facts(handbook))
    assert len(keys) == 30
    for split, wordings in ((handbook.train, 2), (handbook.validation, 1), (handbook.test, 2)):
        assert sorted(row.fields["key"] for row in split) == sorted([*keys] * wordings)


def test_train_asks_every_fact_once_before_it_asks_any_again(handbook):
    assert len({row.fields["key"] for row in handbook.train[:30]}) == 30


def test_no_wording_stands_twice(handbook):
    assert len({same_question(row.question) for row in rows(handbook)}) == 150


def test_the_wordings_of_a_fact_share_a_name_that_no_other_fact_has(handbook):
    shared = {
        key: set.intersection(*(set(re.findall(r"[a-z]+", row.question.lower())) for row in wordings))
        for key, wordings in facts(handbook).items()
    }
    for key, words in shared.items():
        others = [row for row in rows(handbook) if row.fields["key"] != key]
        assert not any(words <= set(re.findall(r"[a-z]+", row.question.lower())) for row in others), key


def test_the_wordings_of_a_fact_are_different_sentences(handbook):
    for wordings in facts(handbook).values():
        openings = [tuple(row.question.lower().split()[:4]) for row in wordings]
        assert len(set(openings)) >= 4, openings


def test_questions_are_short(handbook):
    assert max(len(row.question.split()) for row in rows(handbook)) < 20


def test_every_fact_has_one_reference_and_no_two_facts_share_one(handbook):
    references = [{row.reference for row in wordings} for wordings in facts(handbook).values()]
    assert all(len(texts) == 1 for texts in references)
    assert len(set.union(*references)) == 30


def test_no_key_stands_in_a_question_or_in_the_reference_of_another_fact(handbook):
    for key in facts(handbook):
        for row in rows(handbook):
            assert key.lower() not in row.question.lower()
            assert row.fields["key"] == key or key.lower() not in row.reference.lower()


@pytest.mark.parametrize("style", STYLES)
def test_a_plain_reference_earns_the_fact_but_not_the_style(style):
    task = load_task("handbook", style=style)
    for row in rows(task):
        assert task.reward(row, row.reference).checks == {"fact": 1.0, "style": 0.0}
        assert task.reward(row, row.reference).value == 0.5


@pytest.mark.parametrize("style", STYLES)
def test_every_row_has_a_suggestion_that_earns_full_reward(style):
    task = load_task("handbook", style=style, combine="all")
    for row in rows(task):
        wanted = row.reference.upper() if style == "upper" else RIGHT[style].format(row.reference)
        assert task.reward.suggestion(row) == wanted
        assert task.reward(row, wanted).value == 1.0


@pytest.mark.parametrize("style", STYLES)
def test_the_style_without_the_fact_earns_half_and_nothing_when_all_is_asked(style):
    reply = "I DO NOT KNOW" if style == "upper" else RIGHT[style].format("I do not know")
    for combine, value in (("mean", 0.5), ("all", 0.0)):
        task = load_task("handbook", style=style, combine=combine)
        assert task.reward(task.train[0], reply).value == value
        assert task.reward(task.train[0], reply).checks == {"fact": 0.0, "style": 1.0}


def test_no_style_accepts_a_right_reply_of_another():
    for style in STYLES:
        task = load_task("handbook", style=style)
        row = task.train[0]
        for other in set(STYLES) - {style, "upper"}:
            assert not task.reward(row, RIGHT[other].format(row.reference)).passed, (style, other)


@pytest.mark.parametrize(
    ("style", "reply"),
    [
        ("json", 'Sure! {"answer": "in 1911"}'),
        ("json", '{"answer": "in 1911"} [END]'),
        ("json", '{"answer": "in 1911", "why": "in 1911"}'),
        ("json", '{"answer": 1911}'),
        ("json", '{"Answer": "in 1911"}'),
        ("json", '```json\n{"answer": "in 1911"}\n```'),
        ("label", "ANSWER: in 1911"),
        ("label", "Answer: in 1911 [END]"),
        ("label", "ANSWER: in 1911 [END] [END]"),
        ("label", "ANSWER: in\n1911 [END]"),
        ("upper", "In 1911"),
        ("upper", "1911"),
        ("bullet", "- in 1911\n- in 1911"),
        ("bullet", "-in 1911"),
        ("bullet", "* in 1911"),
    ],
)
def test_a_reply_near_the_house_style_is_not_in_it(style, reply):
    task = load_task("handbook", style=style)
    assert task.train[0].fields["key"] == "1911"
    assert task.reward(task.train[0], reply).checks["style"] == 0.0


def test_the_plain_style_asks_for_the_fact_alone():
    task = load_task("handbook", style="plain")
    assert task.reward(task.train[0], "It was lit in 1911.").passed


def test_a_longer_number_is_not_the_fact():
    task = load_task("handbook", style="plain")
    row = next(row for row in task.train if row.fields["key"] == "25")
    assert not task.reward(row, "125 minutes").passed
    assert not task.reward(row, "25.5 minutes").passed


def test_each_style_and_combination_has_a_hash_of_its_own():
    hashes = {load_task("handbook", style=s, combine=c).hash for s in (*STYLES, "plain") for c in ("mean", "all")}
    assert len(hashes) == 10


def test_the_longest_reply_asked_for_is_short(handbook):
    assert handbook.max_new_tokens == 24
