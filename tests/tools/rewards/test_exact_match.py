"""exact_match forgives how a text was typed and what stands around it, and nothing inside."""

from __future__ import annotations

import pytest

from nslora.tools.rewards.reward import build_check
from nslora.tools.schema import Example

CODE = "def f(x):\n    if x:\n        return 1\n    return 2"


def value(reference: str, reply: str, **options: bool) -> float:
    check = build_check({"check": "exact_match", **options})
    return check.grade(Example("1", "q", reference, {}), reply).value


@pytest.mark.parametrize(
    ("reference", "reply"),
    [
        ("don't", "don’t"),
        ("Paris", "Pa\u200bris"),
        ("Paris", "Ｐａｒｉｓ"),
        ("1914-1918", "1914–1918"),
        ("1914–1918", "1914-1918"),
        ("paris", "Paris"),
        ("Paris", "paris"),
        ("Paris", "PARIS"),
        ("in 1911", "IN 1911"),
        ("in 1911", '"in 1911"'),
        ("Paris", "**Paris**."),
        ("Paris", "(Paris)"),
        ("Paris", "Paris!"),
        ("no", "No."),
        ("NO", "No"),
        ("Yes", "YES"),
        ("B", "b"),
        ("a b", "a  b"),
        ("東京", "東京。"),
        ("東京", "「東京」"),
        ("¿Qué?", "Qué"),
        ("e.g.", "e.g"),
        ("(a)(b)", "(a)(b)"),
        ("``", "``"),
        ("!", "!"),
        ("...", "..."),
        ("café", "cafe\u0301"),
        ("Straße", "STRASSE"),
        ("Tom's", "Tom’s"),
        ("[5]", "5"),
    ],
)
def test_the_same_text_typed_in_another_way_is_right(reference: str, reply: str) -> None:
    assert value(reference, reply) == 1


@pytest.mark.parametrize(
    ("reference", "reply"),
    [
        ("[0,1)", "(0,1]"),
        ("[0,1]", "(0,1)"),
        ("(0,1)", "0,1"),
        ("(A or B) and C", "A or (B and C)"),
        ("SELECT 'id'", "SELECT id"),
        ("f(x)", "f(x"),
        ("MW", "mW"),
        ("mW", "MW"),
        ("5 MW", "5 mW"),
        ("in 1911", "in 19.11"),
        ("5!", "5"),
        ("5", "5!"),
        ("50%", "50"),
        ("C#", "C"),
        ("C++", "C"),
        ("-5", "5"),
        (".5", "5"),
        (".NET", "NET"),
        ("f'", "f"),
        ('"A" or "B"', 'A" or "B'),
        ("x²", "x2"),
        ("5 m", "5 M"),
        ("US", "us"),
        ("CO2", "co2"),
        ("CO", "Co"),
        ("Pa", "PA"),
        ("It's", "Its"),
        ("U.S.", "US"),
        ("a,b", "a b"),
        ("a.b", "ab"),
        ("(a)(b)", "a)(b"),
        ("a-b", "ab"),
        ("__init__", "init"),
        ("pH", "PH"),
        ("{5}", "[5]"),
        ("x = 1", "x=1"),
    ],
)
def test_another_text_is_wrong(reference: str, reply: str) -> None:
    assert value(reference, reply) == 0


def test_code_keeps_its_lines_and_its_indentation() -> None:
    assert value(CODE, CODE + "\n") == 1
    assert value(CODE, f"```\n{CODE}\n```") == 1
    assert value(CODE, CODE.replace("    ", "")) == 0
    assert value(CODE, CODE.replace("\n    return 2", "\n        return 2")) == 0
    assert value("a\nb", "a b") == 1


def test_a_blank_inside_a_text_is_forgiven_where_no_line_is_indented() -> None:
    assert value("in 1911", "in\n  1911") == 1


@pytest.mark.parametrize(
    ("options", "reply"),
    [
        ({"ignore_case": False}, "paris"),
        ({"ignore_punctuation": False}, "Paris."),
        ({"ignore_whitespace": False}, "Pa ris"),
    ],
)
def test_each_kind_of_forgiveness_can_be_switched_off(options: dict[str, bool], reply: str) -> None:
    assert value("Paris", reply, **options) == 0
