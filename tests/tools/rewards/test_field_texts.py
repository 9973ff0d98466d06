"""A check finds the texts of a column, whatever they are wrapped in, or the row is refused."""

import datetime
from decimal import Decimal
from typing import Any

import numpy
import pytest

from nslora.tools.errors import TaskError
from nslora.tools.rewards.reward import build_check
from nslora.tools.schema import Example
from nslora.tools.tasks.task import Task, task_from_rows

EXACT = {"check": "exact_match", "field": "answer"}
CONTAINS = {"check": "contains", "field": "answer"}
TRIVIA = {
    "value": "Ada",
    "aliases": ["Ada L.", "Lady Ada"],
    "normalized_value": "ada",
    "type": "WikipediaEntity",
    "matched_wiki_entity_name": "",
}


@pytest.mark.parametrize("spec", [EXACT, CONTAINS])
@pytest.mark.parametrize(
    ("value", "right", "wrong"),
    [
        ("Ada", ["Ada"], ["Bo"]),
        (["Ada", None, "", "Ada L."], ["Ada", "Ada L."], ["Bo", "None"]),
        (("Ada", "Bo"), ["Ada", "Bo"], ["Cy"]),
        ({"value": "Ada", "aliases": ["Ada L."]}, ["Ada", "Ada L."], ["value", "aliases", "Bo"]),
        (TRIVIA, ["Ada", "Lady Ada"], ["WikipediaEntity", "type", "Bo"]),
        ({"text": ["Ada", "Bo"], "answer_start": [5, 159]}, ["Ada", "Bo"], ["5", "159", "answer_start"]),
        ([{"value": "Ada"}, {"value": "Bo", "type": "1"}], ["Ada", "Bo"], ["1", "value"]),
        ({"answers": [{"text": "Ada", "start": 4}]}, ["Ada"], ["4", "text"]),
        ([["Ada", "Ada L."], ["Bo"]], ["Ada", "Ada L.", "Bo"], ["Cy"]),
        ({"Ada", "Bo"}, ["Ada", "Bo"], ["Cy"]),
        (numpy.array(["Ada", "Bo"]), ["Ada", "Bo"], ["array", "Cy"]),
        (numpy.int64(1911), ["1911"], ["1912"]),
        (7, ["7"], ["8"]),
        (Decimal("1.50"), ["1.50"], ["1.51"]),
        (datetime.date(1911, 5, 6), ["1911-05-06"], ["1911-05-07"]),
    ],
)
def test_any_text_of_a_column_is_right_and_nothing_else(
    spec: dict[str, str], value: Any, right: list[str], wrong: list[str]
) -> None:
    check, example = build_check(spec), Example("train-1", "Who?", None, {"answer": value})
    assert check.problem(example) is None
    assert [reply for reply in right if check.grade(example, reply).value != 1.0] == []
    assert [reply for reply in [*wrong, ""] if check.grade(example, reply).value != 0.0] == []


def task_with(value: Any, check: str) -> Task:
    rows = {
        split: [{"question": f"Who built the {split} mill?", "reference": "x", "answer": "7"}]
        for split in ("train", "validation", "test")
    }
    rows["validation"] = [
        {"question": "Who built the old mill?", "reference": "x", "answer": 7},
        {"question": "Who built the new mill?", "reference": "x", "answer": value},
    ]
    return task_from_rows(**rows, reward=[{"check": check, "field": "answer"}])


@pytest.mark.parametrize("check", ["exact_match", "contains", "numeric"])
@pytest.mark.parametrize(
    ("value", "came"),
    [
        (float("nan"), "NaN"),
        (numpy.nan, "NaN"),
        (numpy.float32("nan"), "NaN"),
        (Decimal("NaN"), "NaN"),
        (["7", float("nan")], "NaN"),
        ({"value": float("nan")}, "NaN"),
        ({"en": "7", "de": "8"}, "an object with the keys en, de"),
        ([{"type": "7"}], "an object with the keys type"),
        (b"7", "bytes"),
        (object(), "object"),
        ({"value": "", "aliases": []}, "missing or empty"),
        ({}, "an object"),
        ([], "missing or empty"),
        (None, "missing or empty"),
    ],
)
def test_a_column_without_texts_is_refused_with_the_row(check: str, value: Any, came: str) -> None:
    with pytest.raises(TaskError, match=f"validation row 2: the check '{check}' needs .*'answer', which .*{came}"):
        task_with(value, check)
