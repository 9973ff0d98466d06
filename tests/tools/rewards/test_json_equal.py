"""json_equal compares JSON by value, and gives a share for each right key."""

from __future__ import annotations

import pytest

from nslora.tools.rewards.reward import build_check, build_reward
from nslora.tools.schema import Example


def graded(reference: str, reply: str, **options: bool):
    return build_check({"check": "json_equal", **options}).grade(Example("1", "q", reference, {}), reply)


@pytest.mark.parametrize(
    ("reference", "reply", "value"),
    [
        ('{"a":1,"b":"x"}', '{"b": "x", "a": 1.0}', 1),
        ('{"a":1,"b":"x"}', '{"a":1}', 0.5),
        ('{"a":1,"b":"x"}', '{"a":1,"b":"x","c":2}', 2 / 3),
        ('{"a":1}', '{"a":true}', 0),
        ("[1,2]", "[2,1]", 0),
        ("[1,2]", "[1, 2]", 1),
        ('{"a":1}', '```json\n{"a":1}\n```', 1),
        ('{"a":1}', 'x {"a":1}', 0),
        ('{"a":1}', '{"a":1,"a":1}', 0),
        ('{"a":{"b":1,"c":2}}', '{"a":{"b":1,"c":3}}', 0.5),
        ('{"a":null}', "{}", 0),
        ("{}", "{}", 1),
        ('{"a":{}}', '{"a":{"b":1}}', 0),
        ('{"a":1}', "", 0),
        ('{"a":"1"}', '{"a":1}', 0),
        ('{"a":1}', '{"a":NaN}', 0),
        ('{"a": 1}', "[" * 100_000, 0),
        ('{"a": "é"}', '{"a": "e\u0301"}', 1),
    ],
)
def test_values_are_compared_not_text(reference: str, reply: str, value: float) -> None:
    assert graded(reference, reply).value == pytest.approx(value)


def test_without_partial_all_pairs_must_be_right() -> None:
    assert graded('{"a": 1, "b": 2}', '{"a": 1}', partial=False).value == 0
    assert graded('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', partial=False).value == 1


def test_the_feedback_names_the_keys() -> None:
    found = graded('{"a": 1, "b": {"c": 2}}', '{"a": 1, "d": 3}')
    assert found.feedback.endswith("Keys to put right, add or leave out: b.c, d.")


def test_a_hidden_reference_stays_hidden() -> None:
    found = graded('{"a": "secret"}', '{"a": 1}', reveal=False)
    assert "secret" not in found.feedback


def test_a_reference_that_is_no_json_is_refused_at_load() -> None:
    check = build_check("json_equal")
    for text in ("Paris", "{'a': 1}", '{"a": NaN}', '{"a": 1, "a": 2}'):
        assert "needs JSON in the field 'reference'" in str(check.problem(Example("1", "q", text, {})))
    assert check.problem(Example("1", "q", '{"a": 1}', {})) is None


def test_a_column_that_is_an_object_is_a_reference() -> None:
    example = Example("1", "q", None, {"key": {"a": 1}})
    assert build_reward([{"check": "json_equal", "field": "key"}])(example, '{"a": 1.0}').value == 1
