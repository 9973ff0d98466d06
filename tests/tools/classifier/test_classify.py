"""Whether repairs or reward heads classify, and with which tolerance."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from nslora.tools.classifier.attribution import need_of
from nslora.tools.classifier.classify import classify_failures, tolerance_of
from nslora.tools.errors import RewardError, TaskError
from nslora.tools.rewards.functions import callable_check
from nslora.tools.rewards.reward import Reward, build_reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.tasks.task import load_task

YEARS = ["1911", "1864", "1738", "1802", "1777", "1690"]
ROWS = [Example(f"train-{i}", f"In which year was number {i} built?", f"in {year}", {}) for i, year in enumerate(YEARS)]


def value(example: Example, reply: str) -> float:
    right = (example.reference or "").removeprefix("in ") in reply
    formed = reply.startswith('{"answer": "') and reply.endswith('"}')
    return (right + formed) / 2


def as_json(text: str) -> str:
    return json.dumps({"answer": text})


def reward(**options: Any) -> Reward:
    return Reward([callable_check(value)], **options)


def graded(reward: Reward, *replies: str) -> list[Graded]:
    return [Graded(row, reply, reward(row, reply)) for row, reply in zip(ROWS, replies, strict=False)]


def good(reward: Reward) -> list[Graded]:
    return [Graded(row, as_json(row.reference or ""), reward(row, as_json(row.reference or ""))) for row in ROWS[4:]]


def test_a_costly_reward_is_not_called_if_a_layout_is_known() -> None:
    asked = reward(costly=True, noise=0.0)
    failures = graded(asked, as_json("in 1066"), "in 1864", "in 1066")
    known, before = good(asked), asked.calls
    found = classify_failures(failures, asked, known_good=known, train=ROWS)
    assert asked.calls == before
    assert [each.verdict for each in found] == ["content", "form", "both"]
    # The deficits predict the reward after one repair: nearly all of it if one side was missing.
    assert found[0].repaired_reward > 0.9
    assert found[2].repaired_reward < 0.5


def test_a_costly_reward_without_a_known_layout_is_called_for_a_few_failures_only() -> None:
    asked = reward(costly=True, noise=0.0)
    rows = [Example(f"row-{i}", f"Question {i}?", f"in {1900 + i}", {}) for i in range(30)]
    failures = [Graded(row, "I do not know.", asked(row, "I do not know.")) for row in rows]
    before = asked.calls
    found = classify_failures(failures, asked, train=rows)
    assert asked.calls - before <= 24
    assert len(found) == 30
    assert need_of(found).both == 1.0


def test_the_few_failures_of_a_costly_reward_come_from_all_of_a_sorted_file() -> None:
    asked = reward(costly=True, noise=0.0)
    rows = [Example(f"row-{i}", f"Question {i}?", f"in {1900 + i}", {}) for i in range(40)]
    replies = [as_json("in 1066") if i < 8 else f"It was {row.reference}." for i, row in enumerate(rows)]
    failures = [Graded(row, reply, asked(row, reply)) for row, reply in zip(rows, replies, strict=True)]
    found = classify_failures(failures, asked, train=rows)
    assert [each.example_id for each in found] == [row.id for row in rows]
    assert need_of(found).p_content < 0.5


def test_the_other_failures_of_a_costly_reward_get_the_first_of_two_verdicts_that_tie() -> None:
    asked = reward(costly=True, noise=0.0)
    rows = [Example(f"row-{i}", f"Question {i}?", f"in {1900 + i}", {}) for i in range(16)]
    replies = ["It was {}.".format(row.reference if i % 4 == 0 else "in 1066") for i, row in enumerate(rows)]
    failures = [Graded(row, reply, asked(row, reply)) for row, reply in zip(rows, replies, strict=True)]
    verdicts = [each.verdict for each in classify_failures(failures, asked, train=rows)]
    assert verdicts[:4:2] == ["form", "both"]
    assert set(verdicts[1::2]) == {"form"}


def test_the_noise_of_a_reward_is_measured_only_once() -> None:
    asked = reward()
    failures = graded(asked, "in 1066", "in 1066")
    assert tolerance_of(asked, failures) == 0.0
    before = asked.calls
    assert tolerance_of(asked, failures) == 0.0
    assert asked.calls == before


def test_undeclared_noise_is_measured() -> None:
    turns = itertools.cycle([0.0, 0.06])
    wavering = Reward([callable_check(lambda example, reply: min(1.0, value(example, reply) + next(turns)))])
    failures = graded(wavering, as_json("in 1066"), "in 1864", "in 1066")
    found = classify_failures(failures, wavering, known_good=good(reward()))
    assert wavering.tolerance == pytest.approx(0.12)
    assert [each.verdict for each in found] == ["content", "form", "both"]


def test_an_error_names_the_row_for_which_a_reward_varies_more_than_declared() -> None:
    turns = itertools.cycle([0.0, 0.2])
    wavering = Reward([callable_check(lambda example, reply: next(turns))], noise=0.1)
    with pytest.raises(RewardError, match=r"Row train-0.*at most 0\.1"):
        classify_failures([Graded(ROWS[0], "in 1066", wavering(ROWS[0], "in 1066"))], wavering)


def test_a_task_declares_that_its_reward_is_costly_or_noisy(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": f"{split}?", "reference": "yes"}) + "\n")
    document = "data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}\nreward: {reward}\n"
    (tmp_path / "task.yaml").write_text(document.format(reward="{checks: [contains], costly: true, noise: 0.1}"))
    asked = load_task(tmp_path).reward
    assert (asked.costly, asked.noise) == (True, 0.1)
    (tmp_path / "task.yaml").write_text(document.format(reward="{checks: [contains], noise: 0.9}"))
    with pytest.raises(TaskError, match=r"task.yaml:2: reward.noise"):
        load_task(tmp_path)


@pytest.mark.parametrize("reply", ["A", "(A)", "Answer: A", "The answer is A.", "I think it is A."])
def test_option_letters_that_are_words_elsewhere_are_answers(reply: str) -> None:
    rows = [Example(f"t{letter}", f"Which one is it, {letter.lower()}?", letter, {}) for letter in "BCDI"]
    reward = build_reward(["contains"])
    failing = [Graded(row, reply, reward(row, reply)) for row in rows if not reward(row, reply).passed]
    for graded, found in zip(failing, classify_failures(failing, reward, train=rows), strict=True):
        assert (found.verdict, found.repaired_reward, found.form_deficit) == ("content", 1.0, 0.0)
        assert found.repaired == re.sub(r"\bA\b", str(graded.example.reference), reply)
