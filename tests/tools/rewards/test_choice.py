"""choice reads which label a reply chooses, and takes no label that the reply only names."""

from __future__ import annotations

import pytest

from nslora.tools.errors import RewardError
from nslora.tools.rewards.choice import LETTERS, chosen
from nslora.tools.rewards.reward import build_check, build_reward
from nslora.tools.schema import Example
from nslora.tools.tasks.task import task_from_rows
from nslora.tools.workspace.budget import plan_of
from nslora.tools.workspace.settings import RunSettings

SPAM, NOT_SPAM, YES = ("spam", "ham"), ("spam", "not spam"), ("yes", "no")
MOOD = ("positive", "negative", "neutral")


@pytest.mark.parametrize(
    ("labels", "reply", "label"),
    [
        (LETTERS, "B", "b"),
        (LETTERS, "b", "b"),
        (LETTERS, "(B)", "b"),
        (LETTERS, "B.", "b"),
        (LETTERS, "Answer: B", "b"),
        (LETTERS, r"\boxed{B}", "b"),
        (LETTERS, "The answer is B", "b"),
        (LETTERS, "The answer is B.", "b"),
        (LETTERS, "The answer is (B)", "b"),
        (LETTERS, "**B**", "b"),
        (LETTERS, "The answer is **B**.", "b"),
        (LETTERS, "A car", None),
        (LETTERS, "A", "a"),
        (LETTERS, "Not B but C", "c"),
        (LETTERS, "I think D", "d"),
        (LETTERS, "I think D.", "d"),
        (LETTERS, "D, I think", "d"),
        (LETTERS, "I think it is D", "d"),
        (LETTERS, "I", "i"),
        (LETTERS, "I don't know", None),
        (LETTERS, "A or B", None),
        (LETTERS, "Both A and B", None),
        (LETTERS, "A and B", None),
        (LETTERS, "The answer is A or B", None),
        (LETTERS, "The answer is not B", None),
        (LETTERS, "B) Paris", "b"),
        (LETTERS, "B. Paris", "b"),
        (LETTERS, "B: Paris", "b"),
        (LETTERS, "(B) Paris", "b"),
        (LETTERS, "The answer is A car", None),
        (LETTERS, "vitamin C.", None),
        (LETTERS, "A is wrong, so B.", "b"),
        (LETTERS, "A is wrong. B is right.", "b"),
        (LETTERS, "It can't be A.", None),
        (LETTERS, "The answer is B because A is wrong.", "b"),
        (LETTERS, "The answer is B. Wait, the answer is C.", "c"),
        (LETTERS, r"The final answer is \boxed{\text{C}}.", "c"),
        (LETTERS, "Option C", "c"),
        (LETTERS, "option C is correct", "c"),
        (LETTERS, "C is the correct answer.", "c"),
        (LETTERS, "answer: b", "b"),
        (LETTERS, "B\nBecause it is so.", "b"),
        (LETTERS, "ABC", None),
        (LETTERS, "A, B", None),
        (LETTERS, "A/B", None),
        (LETTERS, "B, not C", "b"),
        (LETTERS, "So do I.", None),
        (LETTERS, "", None),
        (LETTERS, "K", None),
        (LETTERS, "答案是B", "b"),
        (LETTERS, "答案：B", "b"),
        (LETTERS, "答えはBです", "b"),
        (LETTERS, "B. No, the answer is C", "c"),
        (LETTERS, "Is it B?", None),
        (LETTERS, "I choose B, rather than C.", "b"),
        (LETTERS, "Answer: B or C", None),
        (LETTERS, "The answer is B, C", None),
        (LETTERS, "<answer>B</answer>", "b"),
        (LETTERS, "#### B", "b"),
        (LETTERS, "Neither A nor B", None),
        (LETTERS, "The correct choice is D.", "d"),
        (LETTERS, "A B", None),
        (LETTERS, "None of A, B, C", None),
        (LETTERS, "Answer: (B) Paris", "b"),
        (LETTERS, "A. B. Smith wrote it", None),
        (LETTERS, "Answer: A car", None),
        (LETTERS, "The letter B", "b"),
        (LETTERS, "I'd go with B", "b"),
        (LETTERS, "$B$", "b"),
        (LETTERS, "`B`", "b"),
        (LETTERS, "Answer:\nB", "b"),
        (LETTERS, "Answer: **B**", "b"),
        (LETTERS, "A: because", "a"),
        (LETTERS, "All of them except C.", None),
        (SPAM, "spam", "spam"),
        (SPAM, "not spam", None),
        (SPAM, "Not spam.", None),
        (SPAM, "This is spam.", "spam"),
        (SPAM, "It isn't spam", None),
        (SPAM, "spam, not ham", "spam"),
        (SPAM, "spam or ham", None),
        (SPAM, "This is not a spam message", None),
        (SPAM, "non-spam", None),
        (SPAM, "spammy", None),
        (SPAM, "Spam!", "spam"),
        (SPAM, "Is it spam?", None),
        (SPAM, "It is not spam but ham.", "ham"),
        (SPAM, "spam is unlikely", None),
        (SPAM, "spam-free", None),
        (NOT_SPAM, "not spam", "not spam"),
        (NOT_SPAM, "This is not spam.", "not spam"),
        (NOT_SPAM, "spam", "spam"),
        (MOOD, "The sentiment is positive.", "positive"),
        (MOOD, "more positive than negative", None),
        (MOOD, "not positive, neutral", "neutral"),
        (MOOD, "Label: negative", "negative"),
        (YES, "no", "no"),
        (YES, "No.", "no"),
        (YES, "Yes, it is.", "yes"),
        (YES, "There is no doubt: yes", "yes"),
        (("好", "坏"), "好", "好"),
        (("好", "坏"), "不好", None),
        (("好", "坏"), "答案是好", "好"),
        (("1", "2"), "-1", None),
        (("1", "2"), "1", "1"),
        (("1", "2"), "12", None),
        (("1", "2"), "1.5", None),
        (("1", "2"), "Answer: 2", "2"),
        (SPAM, "Answer: not spam", None),
        (SPAM, "hardly spam", None),
        (SPAM, "category: spam", "spam"),
        (SPAM, "Category: spam or ham", None),
        (SPAM, "no spam", None),
    ],
)
def test_a_reply_chooses_one_label_or_none(labels: tuple[str, ...], reply: str, label: str | None) -> None:
    assert chosen(reply, labels) == label


def test_the_check_gives_the_label_of_the_row_its_reward() -> None:
    example = Example("1", "q", "B", {})
    score = build_reward(["choice"])(example, "Answer: C")
    assert (score.value, score.suggestion) == (0, "B")
    assert score.feedback.startswith("For this question, the reply must choose one label alone, 'B'.")
    assert build_reward(["choice"])(example, "Answer: B").value == 1


@pytest.mark.parametrize(("labels", "text"), [(None, "Paris"), (None, "K"), (["spam", "ham"], "eggs")])
def test_a_reference_that_is_no_label_is_refused_at_load(labels: list[str] | None, text: str) -> None:
    check = build_check({"check": "choice", **({"labels": labels} if labels else {})})
    assert "list all labels under `labels`" in str(check.problem(Example("1", "q", text, {})))
    assert check.problem(Example("1", "q", "Ham" if labels else "b", {})) is None


@pytest.mark.parametrize("labels", [["spam"], ["spam", "Spam"], ["spam", ""], ["a b", "a  b"]])
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str]) -> None:
    with pytest.raises(RewardError, match="needs at least two labels"):
        build_check({"check": "choice", "labels": labels})


def rows(*references: str) -> list[Example]:
    return [Example(str(n), f"q{n}", each, {}) for n, each in enumerate(references * 3)]


@pytest.mark.parametrize(
    ("references", "words"),
    [(("spam", "not spam"), "'spam' stands inside 'not spam'"), (("A", "B"), "'A' is also a word")],
)
def test_contains_says_where_one_label_stands_inside_another(references: tuple[str, ...], words: str) -> None:
    (remark,) = build_reward(["contains"]).remarks(rows(*references))
    assert words in remark
    assert "Use the check `choice`" in remark


def test_contains_says_nothing_where_labels_are_apart() -> None:
    assert build_reward(["contains"]).remarks(rows("spam", "ham")) == []
    assert build_reward(["contains"]).remarks([Example("1", "q", "Ada", {}), Example("2", "r", "Ada B.", {})]) == []
    assert build_reward(["choice"]).remarks(rows("A", "B")) == []


def test_the_note_on_labels_comes_before_a_run() -> None:
    given = {
        split: [{"question": f"{split} {n}?", "reference": ("spam", "not spam")[n % 2]} for n in range(6)]
        for split in ("train", "validation", "test")
    }
    noted = []
    for check in ("contains", {"check": "choice", "labels": ["spam", "not spam"]}):
        task = task_from_rows(**given, reward=[check])
        noted.append(any("Use the check `choice`" in each for each in plan_of(task, RunSettings()).warnings))
    assert noted == [True, False]
