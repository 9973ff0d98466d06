"""The label check: labels from train, and the numbers of classification."""

import pytest
from fakes import FakePolicy
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.run import Run
from nslora.tools.errors import RewardError, TaskError
from nslora.tools.rewards.label import classification
from nslora.tools.rewards.reward import build_check
from nslora.tools.schema import Example
from nslora.tools.tasks.task import task_from_rows

LABELS = ("ham", "spam", "not spam")


def rows(split: str, labels: tuple[str, ...] = LABELS, count: int = 9) -> list[dict[str, str]]:
    return [{"question": f"Mail {split} {i}?", "reference": labels[i % len(labels)]} for i in range(count)]


def task_of(check: object = "label", **splits: list[dict[str, str]]) -> object:
    return task_from_rows(**{split: rows(split) for split in ("train", "validation", "test")} | splits, reward=[check])


@pytest.mark.parametrize(
    ("wanted", "given", "macro_f1"),
    [
        ("012012", "021001", 0.26666666),  # of the documentation of sklearn.metrics.f1_score
        ("012012", "012012", 1.0),
        ("000111", "000000", 1 / 3),  # F1 of 2/3 and of 0
        ("0011", "0.1.", 2 / 3),  # a reply without a label is a miss alone
        ("0000", "1111", 0.0),
        ("", "", 0.0),
    ],
)
def test_macro_f1_is_that_of_scikit_learn(wanted: str, given: str, macro_f1: float) -> None:
    labels = [None if each == "." else each for each in given]
    found = classification({each: each for each in "012345"}, list(wanted), labels)
    assert found["macro_f1"] == pytest.approx(macro_f1)
    assert found["no_label"] == given.count(".")


def test_precision_recall_and_support_are_those_of_each_label() -> None:
    found = classification({"a": "A", "b": "B", "c": "C"}, ["a", "a", "a", "b"], ["a", "b", None, "b"])
    assert found["labels"] == {
        "A": {"precision": 1.0, "recall": pytest.approx(1 / 3), "f1": 0.5, "support": 3},
        "B": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
    }


def test_labels_are_those_of_train() -> None:
    task = task_of()
    assert task.reward.checks[0].labels == ("ham", "not spam", "spam")
    spam = next(row for row in task.test if row.reference == "spam")
    values = [task.reward(spam, reply).value for reply in ("Spam.", "not spam", "It isn't spam", "spam or ham", "Hm")]
    assert values == [1, 0, 0, 0, 0]


def test_a_label_that_train_lacks_is_refused_with_the_way_out() -> None:
    with pytest.raises(TaskError, match="'phish': list all labels under `labels`"):
        task_of(test=rows("test", (*LABELS, "phish")))
    check = {"check": "label", "labels": [*LABELS, "phish"]}
    assert task_of(check, test=rows("test", (*LABELS, "phish"))).reward.checks[0].labels == (*LABELS, "phish")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (rows("train", tuple(f"text {i}" for i in range(9))), "found 9 different texts in 9 rows"),
        (rows("train", ("spam",)), "at least two are needed"),
    ],
)
def test_references_that_are_no_closed_set_are_refused(train: list[dict[str, str]], said: str) -> None:
    with pytest.raises(RewardError, match=said):
        task_of(train=train)


def test_of_several_right_labels_the_one_that_the_reply_gives_counts() -> None:
    check = build_check({"check": "label", "labels": ["a label", "b label"]})
    row = Example("1", "q", "a label", {}, ("a label", "b label"))
    assert check.numbers([row], ["b label"])["labels"]["b label"]["support"] == 1


def test_report_and_console_show_the_numbers_of_each_label(tmp_path) -> None:
    class Spammer(FakePolicy):
        def _reply(self, dialogue: object, adapter: str | None) -> str:
            return "It is spam" if "1" in dialogue[-1]["content"] else "no idea"  # type: ignore[index]

    run = Run.create(tmp_path / "run", task=task_of(), model=Spammer(tmp_path / "adapters"), max_rounds=0)
    report = run.adapt().report
    base = report["test"]["base"]["labels"]["label"]
    assert base["no_label"] == 8
    assert base["labels"]["spam"] == {"precision": 1.0, "recall": pytest.approx(1 / 3), "f1": 0.5, "support": 3}
    assert base["macro_f1"] == pytest.approx(0.5 / 3)
    assert report["validation"]["base"]["labels"]["label"] == base
    for command in ("show", "report"):
        shown = CliRunner().invoke(app, [command, str(tmp_path / "run")])
        assert "macro-F1 0.167, 8 replies without a label" in " ".join(shown.output.split()), shown.output
