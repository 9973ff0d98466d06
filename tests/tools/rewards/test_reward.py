"""Checks judge, mend and explain; the reward combines, caches and refuses what is no number in [0, 1]."""

import datetime
import functools
import hashlib
import json
import math
import pickle
import re
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nslora.tools.errors import RewardError
from nslora.tools.rewards import math_worker
from nslora.tools.rewards.checks import ROW_PREFIX, FieldCheck
from nslora.tools.rewards.number_text import read_number
from nslora.tools.rewards.numeric import same_number
from nslora.tools.rewards.reward import BUILT_IN, SUGGESTION_PREFIX, build_check, build_reward
from nslora.tools.rewards.score import Score, check_means
from nslora.tools.schema import Example

ANSWER_OBJECT = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}
FACT = {"name": "fact", "check": "contains", "field": "key"}
STYLE = {"name": "style", "check": "json_schema", "schema": ANSWER_OBJECT}
TEXTS = st.text(min_size=1, max_size=30).filter(str.strip)


def row(reference: str | None = "in 1911", **fields) -> Example:
    return Example("train-1", "When was it lit?", reference, {"key": "1911", **fields})


def grade(spec, reply, example=None) -> float:
    return build_check(spec).grade(example or row(), reply).value


# Checks


@pytest.mark.parametrize(
    ("spec", "right", "wrong"),
    [
        ("exact_match", ["in 1911", "In  1911.", '"in 1911"', " in 1911\n"], ["1911", "in 1911 AD", "", "in 19.11"]),
        ({"check": "exact_match", "ignore_case": False}, ["in 1911"], ["In 1911"]),
        ({"check": "exact_match", "ignore_punctuation": False}, ["IN 1911"], ["in 1911."]),
        ({"check": "exact_match", "ignore_whitespace": False}, ["in 1911"], ["in  1911"]),
        (FACT, ["1911", "It was 1911.", "(1911)", "1911, I think"], ["19110", "x1911", "1 911", "1911.5", ""]),
        ({**FACT, "whole_words": False}, ["x1911y"], ["191"]),
        ({"check": "regex", "pattern": r"- \S.*"}, ["- a", " - a b\n"], ["a", "- a\n- b", "-a"]),
        ({"check": "regex", "pattern": "b+", "full": False}, ["abc"], ["ac"]),
        ({"check": "regex", "pattern": "ok", "ignore_case": True}, ["OK"], ["okay"]),
        ("upper_case", ["IN 1911", "ÉTÉ"], ["In 1911", "1911", "", "in"]),
        (STYLE, ['{"answer": "x"}', ' {"answer": ""}\n'], ["x", '{"answer": 1}', '{"a": "x"}', "[]", "[" * 100_000]),
        ({"check": "length", "max_words": 2}, ["", "a b"], ["a b c"]),
        ({"check": "length", "min_words": 2}, ["a b"], ["", "a"]),
        ({"check": "length", "max_chars": 3}, ["abc"], ["abcd"]),
        (
            {"check": "length", "max_words": 3},
            ["東京都。", "「東京」", "はい", "กิน", "서울은 아주 크다"],
            ["東京都市", "สวัสดี", "I 東京 x"],
        ),
        ({"check": "length", "min_words": 3}, ["東京都", "สวัสดี"], ["東京", "「東京」。", "서울은"]),
        ({"check": "numeric", "field": "key"}, ["1911", "1,911", "in 1911.", "1911.0", "$1911$"], ["1912", "", "x"]),
    ],
)
def test_a_check_tells_right_replies_from_wrong_ones(spec, right, wrong):
    assert [reply for reply in right if grade(spec, reply) != 1.0] == []
    assert [reply for reply in wrong if grade(spec, reply) != 0.0] == []


@pytest.mark.parametrize(
    ("text", "reply", "stands"),
    [
        *[
            ("25", reply, True)
            for reply in ("24,25,26", "[23,24,25]", "- 25", "1925-25", "B-25", "25.", "25, and", "\u201325")
        ],
        *[
            ("25", reply, False)
            for reply in ("-25", "\u221225", "(-25)", "x = -25", "25,5", "1.25", "25.5", "1,250", "125")
        ],
        ("125", "1,125", False),
        ("125", "2,125,000", False),
        ("1,234", "11,234", False),
        ("1,234", "1,234 boats", True),
        ("-25", "it is -25 today", True),
        ("2.5", "1.5,2.5,3.5", True),
        ("2", "1.5,2.5,3.5", False),
        ("don't", "I don\u2019t know", True),
        ("X-ray", "an X\u2011ray", True),
    ],
)
def test_a_text_stands_in_a_reply_as_whole_words_and_numbers(text: str, reply: str, stands: bool) -> None:
    assert (grade({"check": "contains", "field": "key"}, reply, row(key=text)) == 1.0) is stands


def test_any_text_of_a_list_is_accepted():
    example = row(key=["1911", "nineteen eleven"])
    assert grade(FACT, "In nineteen  eleven.", example) == 1.0


@pytest.mark.parametrize(
    ("expected", "reply", "same"),
    [
        ("0.5", r"$\frac{1}{2}$", True),
        ("1/3", "0.3333333", False),
        ("72", "First 3, then 4, so the answer is 72", True),
        ("1,234", "1234 boats", True),
        ("72", "9^9^9^9^9", False),
        ("-3", "-3", True),
        ("-3", "3", False),
        *[
            ("18", reply, True)
            for reply in (
                "The answer is **18**.",
                "*18*",
                "_18_",
                "9*2 = **18**",
                "Answer: **$18**",
                "9*2 = 18",
                "#### 18",
            )
        ],
        *[("204", reply, False) for reply in ("12 * 17", "12*17=12*17", "The product of 12*17 is 12*17.")],
        *[
            ("18", reply, True)
            for reply in (
                r"The answer is \(18\).",
                r"Answer: \(18\)",
                r"The answer is: \[ x = 18 \]",
                "The answer is 36/2.",
            )
        ],
        ("1/2", r"The answer is \(\frac{1}{2}\).", True),
        ("2", "The answer is $2(3+4)$.", False),
        ("0.3", "0.30000000000000004", True),
        ("7", "3 + 4 =", False),
        ("7", "The answer is 3 + 4 = 7.", True),
        ("1000", "10^3", True),
        ("8", "2^3", False),
        ("0.5", "50%", True),
        ("50", "50%", True),
        ("72", "The answer is 72 (48 in April and 24 in May).", True),
        ("72", "The answer is 72. That is 48 and 24.", True),
        ("18", "17 or 18", False),
        ("1234", "1\u202f234", True),
        ("12345678901234567890", "12345678901234567891", False),
        ("12345678901234567890", "Of 5 and more it is 12345678901234567891", False),
        ("12345678901234567890", "Of 5 and more it is 12345678901234567890", True),
        ("5", "1e999999999999999999999", False),
    ],
)
def test_numbers_are_compared_by_value(expected, reply, same):
    assert same_number(expected, reply, 1e-9) is same


def test_the_tolerance_is_absolute():
    assert same_number("1/3", "0.3333", 1e-3)
    assert not same_number("10", "10.2", 0.1)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_plain_number_is_read_as_python_writes_it(number):
    found = read_number(f"It is {number!r} metres").number
    assert isinstance(found, Decimal)
    assert float(found) == number


@given(TEXTS)
def test_a_json_mend_is_accepted_whatever_the_text(text):
    check = build_check(STYLE)
    assert check.grade(row(), check.mend(row(), text)).value == 1.0
    assert json.loads(check.mend(row(), text))["answer"] == text or check.grade(row(), text).value == 1.0


@given(st.text(max_size=60), st.integers(1, 5), st.integers(1, 20))
def test_a_reply_cut_to_length_fits_it(text, words, chars):
    check = build_check({"check": "length", "max_words": words, "max_chars": chars})
    mended = check.mend(row(), text)
    assert check.grade(row(), mended).value == 1.0
    assert text.startswith(mended)


@given(TEXTS)
def test_a_text_is_contained_in_itself_and_matches_itself(text):
    example = row(reference=text)
    assert grade({"check": "contains"}, text, example) == 1.0
    assert grade("exact_match", f"  {text} ", example) == 1.0


@pytest.mark.parametrize(
    ("text", "reply", "value"),
    [
        ("王芳", "中桥由王芳看守。", 1.0),
        ("東京", "日本の首都は東京です。", 1.0),
        ("서울", "수도는 서울입니다", 1.0),
        ("กรุงเทพ", "เมืองหลวงคือกรุงเทพครับ", 1.0),
        ("NASA", "由NASA建造", 1.0),
        ("25", "第25号", 1.0),
        ("王芳", "由李明看守。", 0.0),
        ("cat", "concat", 0.0),
        ("25", "1.25", 0.0),
        ("$30", "US$30", 0.0),
        ("é", "cafés", 0.0),
        ("三", "十三人", 0.0),
        ("三", "有三人", 1.0),
        ("NASA", "NASA〇", 1.0),
    ],
)
def test_a_text_stands_between_words_where_its_script_parts_them(text, reply, value):
    assert grade({"check": "contains"}, reply, row(reference=text)) == value


@pytest.mark.parametrize("check", ["contains", "exact_match"])
def test_a_letter_with_its_accent_is_one_letter_however_it_came(check):
    assert grade(check, "Jörg", row(reference="Jo\u0308rg")) == 1.0
    assert grade(check, "Jo\u0308rg", row(reference="Jörg")) == 1.0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("exact_match", "For this question, the reply must be exactly 'in 1911'."),
        (FACT, "For this question, the reply must contain '1911'."),
        ({**FACT, "reveal": False}, "For this question, the reply must contain the right text (key)."),
        ({"check": "numeric", "field": "key"}, "For this question, the reply must give the number '1911'."),
        ({"check": "regex", "pattern": "a+"}, "The reply should be text that matches the pattern a+."),
        ({"check": "regex", "pattern": "a+", "wanted": "some a"}, "The reply should be some a."),
        ("upper_case", "The reply should be written in capital letters throughout."),
        ({"check": "length", "max_words": 1}, "The reply should have at most 1 words; this one has 2."),
        (STYLE, "The reply should be a JSON object with the key answer, with no text before or after it."),
    ],
)
def test_feedback_says_what_is_wrong(spec, words):
    assert build_check(spec).grade(row(), "no idea").feedback == words


def test_feedback_on_json_of_the_wrong_shape_names_the_fault():
    feedback = build_check(STYLE).grade(row(), '{"answer": 1911}').feedback
    assert feedback == "The reply should be a JSON object with the key answer; here 1911 is not of type 'string'."


READ_BACK = {
    "exact_match": {},
    "contains": {"field": "key"},
    "choice": {"labels": ["in 1911", "in 1912"]},
    "label": {"labels": ["in 1911", "in 1912"]},
    "numeric": {"field": "key"},
    "regex": {"pattern": "a+"},
    "json_schema": {"schema": STYLE["schema"]},
    "json_equal": {"field": "json"},
    "length": {"max_words": 1, "max_chars": 5},
    "upper_case": {},
}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("reply", ["no idea", '{"answer": 1, "x": 2}'])
def test_feedback_of_each_check_asks_for_something_and_forbids_nothing(name, reply):
    """An editor read "does not contain 'black barley'" as a rule, and forbade the right answer in the prompt."""
    example = row(json='{"answer": 1911}')
    feedback = build_check({"check": name, **READ_BACK[name]}).grade(example, reply).feedback
    unquoted = re.sub(r"'[^']*'", "", feedback.replace("with no text before or after it", "alone"))
    for sentence in re.split(r"(?<=\.) ", unquoted):
        asked = sentence.partition("; ")[0]
        assert re.search(r"\b(?:must|should)\b|\bto put right", asked), sentence
        assert not re.search(r"\b(?:no|not|never|wrong|avoid|without)\b|n't", asked), sentence
    if issubclass(BUILT_IN[name], FieldCheck):
        assert feedback.startswith(ROW_PREFIX)  # what holds for one row is no rule


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("exakt", "Unknown check 'exakt': known are exact_match, contains"),
        ({"field": "key"}, "under the key `check`"),
        ({"check": "contains", "feild": "key"}, "unknown field 'feild'"),
        ({"check": "contains", "weight": 0}, "weight: input should be greater than 0"),
        ({"check": "regex"}, "the field 'pattern' is missing"),
        ({"check": "regex", "pattern": "("}, "invalid regular expression"),
        ({"check": "regex", "pattern": "a", "form": "a"}, "must contain {reply} exactly once"),
        ({"check": "json_schema", "schema": {"type": "thing"}}, "invalid JSON schema"),
        ({"check": "length"}, "at least one of min_words"),
        ({"check": "length", "min_words": 3, "max_words": 2}, "min_words 3 is above max_words 2"),
    ],
)
def test_a_wrong_check_is_refused_by_name(spec, part):
    with pytest.raises(RewardError) as caught:
        build_check(spec)
    assert part in str(caught.value)


def test_the_error_for_an_unknown_check_lists_all_that_are_known():
    with pytest.raises(RewardError) as caught:
        build_check("exakt")
    assert all(name in str(caught.value) for name in BUILT_IN)


# Reward


def test_the_mean_weighs_the_checks():
    reward = build_reward([{**FACT, "weight": 3}, STYLE])
    assert reward(row(), "1911").value == 0.75
    assert reward(row(), "1911").checks == {"fact": 1.0, "style": 0.0}


def test_all_or_nothing_gives_nothing_for_a_part():
    reward = build_reward([FACT, STYLE], combine="all")
    assert reward(row(), "1911").value == 0.0
    assert reward(row(), '{"answer": "1911"}').value == 1.0


def test_feedback_ends_with_a_reply_that_would_be_right():
    score = build_reward([FACT, STYLE])(row(), "no idea")
    words, _, suggestion = score.feedback.partition("\n" + SUGGESTION_PREFIX)
    assert words.startswith("For this question, the reply must contain '1911'. The reply should be a JSON object")
    assert suggestion == score.suggestion == '{"answer": "in 1911"}'


def test_a_passed_reply_has_no_feedback():
    score = build_reward([FACT, STYLE])(row(), '{"answer": "1911"}')
    assert score.passed
    assert score.feedback == ""


def test_a_suggestion_that_earns_less_than_full_reward_is_not_shown():
    reward = build_reward([FACT, {"check": "regex", "pattern": "a+"}])
    assert reward(row(), "no").suggestion is None
    assert SUGGESTION_PREFIX not in reward(row(), "no").feedback


def test_a_check_that_hides_what_is_right_also_hides_the_suggestion():
    score = build_reward([{**FACT, "reveal": False}, STYLE])(row(), "no")
    assert score.suggestion is None
    assert "1911" not in score.feedback


def test_a_row_without_a_reference_has_no_suggestion():
    assert build_reward(["upper_case"])(row(reference=None), "no").suggestion is None


def test_the_content_is_mended_before_the_form_whatever_the_order():
    assert build_reward([STYLE, FACT]).suggestion(row(reference="long ago")) is None
    assert build_reward([FACT, STYLE]).suggestion(row(reference="long ago")) == '{"answer": "1911"}'


def test_each_reply_is_judged_once_and_calls_count_the_real_evaluations():
    reward = build_reward(lambda question, reference, reply: 1.0)
    for _ in range(3):
        reward(row(), "a")
    assert reward.calls == 1
    reward.fresh(row(), "a")
    assert reward.calls == 2


def test_the_suggestion_costs_one_call_a_row():
    reward = build_reward([FACT, STYLE])
    for reply in "abc":
        reward(row(), reply)
    assert reward.calls == 4


def test_rows_of_other_tasks_with_the_same_id_are_not_mixed_up():
    reward = build_reward(["exact_match"])
    other = Example("train-1", "Another question?", "b", {})
    assert reward(row(reference="a"), "b").value == 0.0
    assert reward(other, "b").value == 1.0


@pytest.mark.parametrize("combine", ["mean", "all"])
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.data())
def test_the_reward_stays_within_0_and_1_and_is_full_only_for_a_pass(combine, values, data):
    weights = [data.draw(st.floats(0.01, 100)) for _ in values]
    checks = []
    for number, (value, weight) in enumerate(zip(values, weights, strict=True)):
        inner = build_reward(lambda question, reference, reply, value=value: value).checks[0]
        checks.append(inner.model_copy(update={"name": f"part {number}", "weight": weight}))
    reward = type(build_reward(["upper_case"]))(checks, combine)
    score = reward(row(), "x")
    assert 0.0 <= score.value <= 1.0 + 1e-12
    assert score.passed == all(value >= 1 - 1e-9 for value in values)  # rounding is taken off
    if score.passed:
        assert score.value == 1.0


def test_two_checks_of_one_name_are_refused():
    with pytest.raises(RewardError, match="Two checks are named 'upper_case'"):
        build_reward(["upper_case", "upper_case"])


def test_a_reward_without_checks_is_refused():
    with pytest.raises(RewardError, match="at least one check"):
        build_reward([])


def test_an_unknown_combination_is_refused():
    with pytest.raises(RewardError, match="known: mean, all"):
        build_reward(["upper_case"], combine="max")


def test_a_score_survives_pickling():
    score = build_reward([FACT, STYLE])(row(), "no")
    assert pickle.loads(pickle.dumps(score)) == score


# Functions of the user


@pytest.mark.parametrize(
    ("result", "value", "feedback"),
    [
        (1, 1.0, ""),
        (True, 1.0, ""),
        (0.5, 0.5, "The check 'reward' gave 0.5 of 1."),
        ((0.5, "half"), 0.5, "half"),
        ({"score": 0.25, "feedback": "a quarter"}, 0.25, "a quarter"),
        (Score(0.5, {"a": 1.0, "b": 0.0}, "no b"), 0.5, "no b"),
        (1 + 1e-12, 1.0, ""),
        (0.7 + 0.2 + 0.1, 1.0, ""),
        (Score(0.5, {}, ""), 0.5, "The check 'reward' gave 0.5 of 1."),
    ],
)
def test_a_function_may_answer_in_several_ways(result, value, feedback):
    score = build_reward(lambda question, reference, reply: result)(row(reference=None), "x")
    assert (score.value, score.feedback) == (value, feedback)


def test_the_checks_of_a_score_become_the_checks_of_the_reward():
    score = build_reward(lambda question, reference, reply: Score(0.5, {"a": 1.0, "b": 0.0}, "no b"))(row(), "x")
    assert score.checks == {"a": 1.0, "b": 0.0}


def test_a_suggestion_of_a_function_is_shown_only_if_it_earns_full_reward():
    def judge(question, reference, reply):
        return Score(float(reply == "yes"), {"yes": float(reply == "yes")}, "Say yes.", offered)

    offered = "yes"
    assert build_reward(judge)(row(), "no").suggestion == "yes"
    offered = "perhaps"
    assert build_reward(judge)(row(), "no").suggestion is None


@pytest.mark.parametrize(
    "result", [math.nan, math.inf, -0.1, 1.1, None, "0.5", (math.nan, "x"), {"score": 2}, [1, 2, 3]]
)
def test_a_function_that_gives_no_number_from_0_to_1_stops_the_run_with_the_row(result):
    with pytest.raises(RewardError) as caught:
        build_reward(lambda question, reference, reply: result)(row(), "x")
    assert "on row 'train-1'" in str(caught.value)
    assert "a number from 0 to 1" in str(caught.value)


def test_what_a_function_gives_beside_its_number_is_text():
    for function, problem in (
        (lambda reply: (1.0, 0.0), "returned 0.0 as feedback"),
        (lambda reply: Score(0.5, {}, "", 5), "the suggestion 5"),
    ):
        with pytest.raises(RewardError, match=problem):
            build_reward(function)(row(), "x")
    assert str(build_reward(lambda reply: -0.0)(row(), "x").value) == "0.0"


def test_a_score_with_a_check_out_of_range_is_refused():
    with pytest.raises(RewardError, match="train-1"):
        build_reward(lambda question, reference, reply: Score(1.0, {"a": 2.0}, ""))(row(), "x")


def test_a_function_that_raises_stops_the_run_with_the_row_and_the_cause():
    def broken(question, reference, reply):
        raise KeyError("score")

    with pytest.raises(RewardError, match=r"on row 'train-1' with the reply 'x', raised KeyError: 'score'"):
        build_reward(broken)(row(), "x")


def test_a_function_is_called_with_the_names_it_asks_for():
    assert build_reward(lambda reply, example: float(reply == example.fields["key"]))(row(), "1911").value == 1.0
    all_names = {"question", "reference", "reply", "example", "trajectory"}
    assert build_reward(lambda **named: float(set(named) == all_names))(row(), "x").passed


def test_a_function_that_cannot_be_called_is_refused_before_the_run():
    with pytest.raises(RewardError, match=r"unknown parameter 'temperature'.*\(question, reference, reply, example\)"):
        build_reward(lambda reply, temperature: 1.0)


def test_a_function_beside_the_task_is_found_and_gets_its_options(tmp_path):
    (tmp_path / "mine.py").write_text("def long_enough(reply, least=1):\n    return len(reply) >= least\n")
    check = build_check({"check": "mine:long_enough", "least": 3}, tmp_path)
    assert check.name == "long_enough"
    assert [check.grade(row(), reply).value for reply in ("ab", "abc")] == [0.0, 1.0]


def test_two_tasks_may_each_have_a_module_of_the_same_name(tmp_path):
    values = []
    for value in (0, 1):
        folder = tmp_path / str(value)
        folder.mkdir()
        (folder / "mine.py").write_text(f"def judge(reply):\n    return {value}\n")
        values.append(build_check("mine:judge", folder).grade(row(), "x").value)
    assert values == [0.0, 1.0]


def test_an_installed_function_is_found():
    assert build_check("nslora.tools.tasks.task:same_question").name == "same_question"


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("no_such_module:judge", "cannot be imported (ModuleNotFoundError"),
        ("json:no_such_function", "'json' has no callable 'no_such_function'"),
        ("json:__name__", "no callable '__name__'"),
        ("math:", "cannot be found"),
        (":judge", "cannot be imported"),
    ],
)
def test_a_function_that_does_not_exist_is_refused(kind, part):
    with pytest.raises(RewardError) as caught:
        build_check(kind)
    assert part in str(caught.value)


def test_an_option_that_the_function_does_not_take_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def judge(reply):\n    return 1\n")
    with pytest.raises(RewardError, match="least"):
        build_check({"check": "mine:judge", "least": 3}, tmp_path)


def test_a_changed_function_changes_the_spec_of_the_reward(tmp_path):
    specs = []
    for value in (0, 1):
        (tmp_path / "mine.py").write_text(f"def judge(reply):\n    return {value}\n")
        specs.append(build_reward(["mine:judge"], folder=tmp_path).spec)
    (tmp_path / "mine.py").write_text("def judge(reply):\n    return helped()\n\n\ndef helped():\n    return 0\n")
    specs.append(build_reward(["mine:judge"], folder=tmp_path).spec)
    (tmp_path / "mine.py").write_text("def judge(reply):\n    return helped()\n\n\ndef helped():\n    return 1\n")
    specs.append(build_reward(["mine:judge"], folder=tmp_path).spec)
    assert all(specs.count(spec) == 1 for spec in specs)


def test_a_partial_is_known_by_what_it_calls_and_what_it_binds() -> None:
    def judge(reply: str, least: int) -> float:
        return float(len(reply) >= least)

    one, two, again = (build_reward(functools.partial(judge, least=least)).spec for least in (1, 2, 1))
    assert one == again != two
    assert one["checks"][0]["code"] != hashlib.sha256(b"").hexdigest()


def test_a_schema_with_a_plain_true_for_a_field_is_mended() -> None:
    check = build_check(
        {"check": "json_schema", "schema": {"type": "object", "properties": {"answer": True}, "required": ["answer"]}}
    )
    assert json.loads(check.mend(Example("1", "q", "r", {}), "r")) == {"answer": "r"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": [datetime.date(2024, 1, 1)]}, "in quotes"),
        ({"$ref": "https://example.invalid/schema.json"}, "points outside"),
        ({"$ref": "#/$defs/missing"}, "points outside"),
        ({"enum": [1], "$ref": "#/enum/foo"}, "points outside"),
        ({"$dynamicRef": "https://example.invalid/x"}, "points outside"),
    ],
)
def test_a_schema_that_could_not_be_used_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        build_check({"check": "json_schema", "schema": schema})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        {"const": {"$ref": "zz"}},
        {"$id": "https://example.invalid/a#", "$defs": {"a": {}}, "$ref": "#/$defs/a"},
        {"$defs": {"b": {"$id": "https://example.invalid/b", "$ref": "c", "$defs": {"c": {"$id": "c"}}}}},
    ],
)
def test_sound_references_are_taken(schema: dict[str, Any]) -> None:
    build_check({"check": "json_schema", "schema": schema})


def test_a_schema_may_point_into_itself() -> None:
    schema = {"$defs": {"word": {"type": "string"}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/word"}}}
    check = build_check({"check": "json_schema", "schema": schema})
    assert check.grade(Example("1", "q", "r", {}), '{"a": "x"}').value == 1
    assert check.grade(Example("1", "q", "r", {}), '{"a": 1}').value == 0


@pytest.mark.parametrize(
    ("expected", "reply", "same"), [("5", "\u22125", False), ("-5", "\u22125", True), ("\u22125", "-5", True)]
)
def test_a_typographers_minus_is_one(expected: str, reply: str, same: bool) -> None:
    assert same_number(expected, reply, 1e-6) is same


def test_parts_of_one_name_hide_none_of_each_other(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        "from nslora.tools.rewards.reward import Score\n\n\n"
        "def first(reply):\n    return Score(0.0, {'part': 0.0}, '')\n\n\n"
        "def second(reply):\n    return Score(1.0, {'part': 1.0}, '')\n"
    )
    score = build_reward(["two:first", "two:second"], combine="all", folder=tmp_path)(row(), "x")
    assert score.checks == {"part": 0.0, "second.part": 1.0}
    assert not score.passed
    assert score.value == 0


def test_checks_that_only_some_rows_have_are_means_over_those_rows() -> None:
    assert check_means([{"a": 1.0}, {"a": 0.0, "b": 0.5}]) == {"a": 0.5, "b": 0.5}


def test_brackets_without_end_are_no_json() -> None:
    check = build_check(
        {
            "check": "json_schema",
            "schema": {"$defs": {"nest": {"type": "array", "items": {"$ref": "#/$defs/nest"}}}, "$ref": "#/$defs/nest"},
        }
    )
    assert check.grade(row(), "[[]]").value == 1
    assert check.grade(row(), "[" * 400 + "]" * 400).value == 0


def test_arithmetic_that_takes_forever_is_ended_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    math_worker._WORKER._end()  # the next process has this limit
    monkeypatch.setattr(math_worker, "KILL_S", 1.0)
    found: list[bool] = []

    def ask() -> None:
        found.append(same_number("1", r"$\binom{99999999}{4999999}$", 1e-6))
        math_worker._WORKER._end()
        monkeypatch.setattr(math_worker, "KILL_S", 60.0)
        found.append(same_number("0.5", r"$\frac{1}{2}$", 1e-6))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [False, True]


@pytest.mark.parametrize(("work", "status"), [("while True: pass", 1), ("sum(range(10**12))", -signal.SIGPROF)])
def test_a_request_ends_by_its_cpu_time_also_inside_one_operation(work: str, status: int) -> None:
    script = f"from nslora.tools.rewards.math_worker import _limited\nwith _limited(0.3):\n    {work}"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, "TimeoutError" in ended.stderr) == (status, status == 1)


@pytest.mark.parametrize(
    "score", [Score(0.0, {"a": 1.0}, ""), Score(1.0, {"a": 0.0}, "bad"), Score(0.9, {"a": 1.0, "b": 1.0}, "")]
)
def test_a_score_that_contradicts_its_checks_is_refused(score: Score) -> None:
    with pytest.raises(RewardError, match=r"row 'train-1'.*it must be 1 if all checks are 1"):
        build_reward(lambda question, reference, reply: score)(row(), "x")


def test_a_score_without_checks_or_with_odd_feedback_is_taken_as_it_is_meant() -> None:
    odd: Any = Score(0.5, None, 5)  # type: ignore[arg-type]
    score = build_reward(lambda question, reference, reply: odd)(row(), "x")
    assert (score.value, score.feedback) == (0.5, "5")


def test_a_reward_that_leaves_the_process_is_an_error_of_its_row() -> None:
    def leaves(question: str, reference: str, reply: str) -> float:
        raise SystemExit(3)

    with pytest.raises(RewardError, match="raised SystemExit"):
        build_reward(leaves)(row(), "x")


def test_the_error_says_why_a_reward_cannot_import_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("x = 1\n")
    (tmp_path / "mine.py").write_text("import neighbour_of_mine\n\ndef grade(reply):\n    return 1.0\n")
    with pytest.raises(RewardError, match="cannot import its neighbour 'neighbour_of_mine'"):
        build_reward([{"check": "mine:grade"}], folder=tmp_path)
