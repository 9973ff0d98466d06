"""Reward functions with the signatures of other frameworks are called as they are there, or refused."""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nslora.tools.errors import RewardError, TaskError
from nslora.tools.rewards.reward import build_check, build_reward
from nslora.tools.schema import Example
from nslora.tools.tasks.task import Task, task_from_rows

ROW = Example("train-1", "When was it lit?", "in 1911", {"key": "1911", "year": "in 1911"})
RIGHT, WRONG, EMPTY = "in 1911", "in 1912", ""


class Judge:
    def __call__(self, prompt, completion, answer):
        return float(completion == answer)


def trl_text(completions, answer, **kwargs):
    return [float(one == wanted) for one, wanted in zip(completions, answer, strict=True)]


def trl_chat(prompts, completions, answer, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    asked = [prompt[-1]["content"] for prompt in prompts]
    return [
        float(one == wanted and question == "When was it lit?")
        for one, wanted, question in zip(contents, answer, asked, strict=True)
    ]


def trl_columns(completions, key, **kwargs):
    return [float(wanted in one) for one, wanted in zip(completions, key, strict=True)]


async def trl_async(prompts, completions, answer, **kwargs):
    return [float(one == wanted) for one, wanted in zip(completions, answer, strict=True)]


def dspy_metric(gold, pred, trace=None):
    assert trace is None
    return gold.answer == pred.answer


def dspy_own_field(example, pred, trace=None):
    return example.year == pred.year and example["question"] == "When was it lit?"


def gepa_metric(gold, pred, trace, pred_name, pred_trace):
    assert trace is pred_name is pred_trace is None
    right = gold.answer.lower() in pred.response.lower()
    return SimpleNamespace(score=float(right), feedback="Look at the log of the keeper.")


def verifiers_state(prompt, completion, answer, state, info, task="default"):
    assert state["prompt"] == prompt
    assert info["key"] == "1911"
    return 1.0 if state["completion"] == completion == state["answer"] else 0.0


def verifiers_chat(completion, answer, **kwargs):
    return float(completion[-1]["content"] == answer and kwargs["info"]["key"] == "1911")


def verl_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "acc": 0.5}


def positional_only(prompt, completion, answer, /):
    return float(completion == answer)


@pytest.mark.parametrize(
    "function",
    [
        trl_text,
        trl_chat,
        trl_columns,
        trl_async,
        dspy_metric,
        dspy_own_field,
        gepa_metric,
        verifiers_state,
        verifiers_chat,
        verl_score,
        positional_only,
        Judge(),
        lambda prompt, completion, answer: float(completion == answer),
        lambda completion, answer: (completion == answer, "No."),
        lambda prompt, completion, key: float(key in completion),
        lambda completion, ground_truth: float(completion == ground_truth),
        lambda completions, **kwargs: [float(completions == kwargs.get("ground_truth"))],
        lambda completions, solution: [float(completions[0] == solution[0])],
        lambda example, prediction, trace=None: example.reference == prediction.output,
        lambda reply, reference: float(reply == reference),
        lambda question, reference, reply: float(reply == reference),
    ],
)
def test_a_function_from_elsewhere_tells_right_from_wrong(function: Callable[..., Any]) -> None:
    reward = build_reward(function)
    assert [reward(ROW, reply).value for reply in (RIGHT, WRONG, EMPTY)] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("function", "unknown"),
    [
        (lambda a, b, c: 1.0, "'a', 'b', 'c'"),
        (lambda text, label: 1.0, "'text', 'label'"),
        (lambda question, reference, prediction: 1.0, "'question', 'reference'"),
        (lambda question, answer: 1.0, "'answer'"),
        (lambda inputs, outputs, reference_outputs: 1.0, "'inputs', 'outputs', 'reference_outputs'"),
        (lambda reply, temperature: 1.0, "'temperature'"),
        (lambda gold, pred, judge: 1.0, "'judge'"),
        (lambda state, target: 1.0, "'state', 'target'"),
        (lambda gold: 1.0, "'gold'"),
        (lambda: 1.0, "no parameter for the reply"),
        (lambda *texts: 1.0, "no parameter for the reply"),
        (lambda least=1: 1.0, "no parameter for the reply"),
        (dict.fromkeys, "unknown parameter"),
    ],
)
def test_unknown_names_are_refused_with_the_known_signatures(function: Callable[..., Any], unknown: str) -> None:
    with pytest.raises(RewardError) as caught:
        build_reward(function)
    message = str(caught.value)
    assert unknown in message
    for known in ("(question, reference, reply, example)", "(prompts, completions,", "trace", "solution_str", "state"):
        assert known in message


def test_an_option_of_the_spec_is_a_known_name(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "def judge(completion, answer, least):\n    return len(completion) >= least and completion == answer\n"
    )
    check = build_check({"check": "mine:judge", "least": 7}, tmp_path)
    assert [check.grade(ROW, reply).value for reply in (RIGHT, WRONG, EMPTY)] == [1.0, 0.0, 0.0]
    for wrong in ("most", "completion"):
        with pytest.raises(RewardError, match=f"option '{wrong}'"):
            build_check({"check": "mine:judge", "least": 7, wrong: 1}, tmp_path)


def rows_task(reward: Callable[..., Any], **options: Any) -> Task:
    rows = {
        split: [{"question": f"Who built the {split} mill?", "reference": "Ada"}]
        for split in ("train", "validation", "test")
    }
    return task_from_rows(**rows, reward=reward, **options)


@pytest.mark.parametrize(
    "function",
    [
        lambda completions, gold_label, **kwargs: [1.0],
        lambda completions, completion_ids: [1.0],
        lambda prompt, completion, parser: 1.0,
    ],
)
def test_a_column_that_a_row_lacks_is_refused_with_the_row(function: Callable[..., Any]) -> None:
    with pytest.raises(TaskError, match=r"train row 1: the reward function .* needs .*which this row lacks"):
        rows_task(function)


@pytest.mark.parametrize(
    "function", [lambda prompt, completion, answer: 1.0, lambda solution_str, ground_truth: 1.0, trl_text]
)
def test_an_answer_that_the_task_lacks_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(TaskError, match="which this row lacks"):
        rows_task(function, fields={"reference": None})


def test_a_default_stands_where_the_row_lacks_the_value() -> None:
    task = rows_task(lambda completion, answer="Bo": completion == answer, fields={"reference": None})
    assert task.reward(task.train[0], "Bo").passed


def test_dspy_objects_are_not_texts() -> None:
    """Compared as such they would be unequal, and every reply would earn 0."""
    for function in (
        lambda gold, pred, trace=None: gold == pred,
        lambda gold, pred, trace=None: pred == "in 1911",
        lambda gold, pred, trace=None: pred.strip() == "in 1911",
        lambda gold, pred, trace=None: pred.confidence > 0.5,
    ):
        with pytest.raises(RewardError, match=r"raised (TypeError|AttributeError)"):
            build_reward(function)(ROW, RIGHT)


@pytest.mark.parametrize("result", [0.5, [], [0.5, 0.5], "1", {"score": 1.0}, None])
def test_a_function_of_completions_gives_a_list_of_one(result: Any) -> None:
    with pytest.raises(RewardError, match="a list with one reward for each"):
        build_reward(lambda completions: result)(ROW, "x")


@pytest.mark.parametrize(
    "result",
    [
        {"score": 0.25, "reason": "No year."},
        {"score": 0.25, "feedback": "No year.", "reason": "other"},
        {"score": 0.25, "comment": "No year.", "key": "judge"},
        {"score": 0.25, "feedback": "", "explanation": "No year."},
        (0.25, "No year."),
        SimpleNamespace(score=0.25, feedback="No year."),
        SimpleNamespace(score=0.25, reason="No year."),
    ],
)
def test_what_a_judge_says_reaches_the_editor(result: Any) -> None:
    score = build_reward(lambda question, reference, reply: result)(Example("1", "Q?", None, {}), "x")
    assert (score.value, score.feedback) == (0.25, "No year.")


class Uncalled:
    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, question, reply):
        return 1.0


def test_a_class_in_the_place_of_its_object_is_refused() -> None:
    with pytest.raises(RewardError, match="is a class: give an object of it"):
        build_reward(Uncalled)
    assert build_reward(Uncalled(0.5))(ROW, RIGHT).value == 1


def scaled(reply, scale):
    return scale


def raw(*values):
    return [(lambda reply, value=value: value) for value in values]


def test_what_functions_return_is_a_number_or_refused_in_a_sentence() -> None:
    judge = SimpleNamespace(score=np.float64(0.5), feedback=None)
    half = (0.5, np.float32(0.5), torch.tensor(0.5), Decimal("0.5"), Fraction(1, 2), {"score": 0.5}, judge, (0.5, None))
    for function in (*raw(*half), partial(scaled, scale=0.5), lambda completions, **columns: np.array([0.5])):
        assert build_reward(function)(ROW, RIGHT).value == 0.5
    for function in raw(True, np.bool_(True), 1, torch.tensor(True), {"score": True, "reason": ""}, 1 + 1e-12):
        assert build_reward(function)(ROW, RIGHT).value == 1
    wrong = (
        None,
        "1.0",
        math.nan,
        math.inf,
        5,
        -1,
        1j,
        np.array([1.0, 0.5]),
        torch.tensor([0.5, 1.0]),
        [],
        {},
        object(),
    )
    wrong += ({"reward": 1.0}, {"score": None}, (0.5, {"why": "x"}), (each for each in (1.0,)))
    for function in (*raw(*wrong), lambda completions, **columns: [None], lambda completions, **columns: 1.0):
        with pytest.raises(RewardError, match=r"on row 'train-1' with the reply 'in 1911', returned .*[.:]"):
            build_reward(function)(ROW, RIGHT)
