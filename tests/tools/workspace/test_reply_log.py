"""A log of replies, classified without any model."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.tools.errors import RewardError, TaskError
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.tasks.task import task_from_rows
from nslora.tools.workspace.reply_log import classify_replies

LIGHTHOUSE = "In which year was the Marrowick lighthouse first lit?"
LOG = [
    {"question": LIGHTHOUSE, "reference": "in 1911", "reply": "I think it was lit in 1854."},
    {"question": "When was Willow Bridge opened?", "reference": "in 1864", "reply": '{"answer": "in 1864"}'},
    {"question": "In which year was the Tallow Library founded?", "reference": "in 1738", "reply": "in 1738"},
    {"question": LIGHTHOUSE, "reply": '{"answer": "in 1900"}'},
]


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(LocalPolicy, "load", refused)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return written(tmp_path, LOG)


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "replies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_failing_reply_gets_its_verdict_and_the_reply_that_proves_it(log: Path) -> None:
    report = classify_replies("handbook", log)
    assert (report.rows, report.passed, report.known_good) == (4, 1, 1)
    verdicts = {each.id: each for each in report.verdicts}
    assert {name: each.verdict for name, each in verdicts.items()} == {
        "row-1": "both",
        "row-3": "form",
        "row-4": "content",
    }
    assert verdicts["row-3"].repaired_reward == verdicts["row-4"].repaired_reward == 1.0
    assert report.need.failures == 3
    assert report.need.content == report.need.form == report.need.both == pytest.approx(1 / 3)
    assert report.reward_calls > 0


def test_what_a_row_leaves_out_is_taken_from_the_tasks_row_of_the_same_question(log: Path) -> None:
    last = classify_replies("handbook", log).verdicts[-1]
    assert last.reference == "in 1911"


def test_without_a_reply_that_earned_it_all_the_layout_comes_from_the_rewards_own_suggestions(tmp_path: Path) -> None:
    report = classify_replies("handbook", written(tmp_path, [LOG[2]]))
    assert (report.known_good, report.suggested) == (0, True)
    assert report.verdicts[0].verdict == "form"


def test_several_replies_to_one_row_are_told_apart(tmp_path: Path) -> None:
    rows = [{"id": "a", "question": LIGHTHOUSE, "reply": reply} for reply in ("in 1911", '{"answer": "in 1900"}')]
    report = classify_replies("handbook", written(tmp_path, [*rows, LOG[1]]))
    assert {each.id: each.verdict for each in report.verdicts} == {"a": "form", "a#2": "content"}


def test_rows_may_come_from_python_and_all_may_be_right() -> None:
    report = classify_replies("handbook", [LOG[1]])
    assert (report.passed, report.need.failures, report.verdicts) == (1, 0, ())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no reply came"),
        ([{"question": "Who?", "reply": "Me."}], r"replies.jsonl:1: no field 'reference' \(found: question, reply\)"),
        (
            [{"question": LIGHTHOUSE, "response": "1911"}],
            r"no field 'reply' \(found: question, response\).*--reply-field",
        ),
        ([{"prompt": LIGHTHOUSE, "reply": "1911"}], "no field 'question'"),
        ([{"question": LIGHTHOUSE, "reference": 1911, "reply": "1911"}], "the reference is 1911"),
        ([{"question": LIGHTHOUSE, "reply": 1911}], "the reply is 1911"),
        ([{"question": "Who?", "reference": "Ann", "reply": "Bob"}], "needs the field 'key'"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        classify_replies("handbook", written(tmp_path, rows))


def test_the_reply_may_stand_in_another_field_that_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, [{"question": LIGHTHOUSE, "response": "in 1911"}])
    assert classify_replies("handbook", path, reply_field="response").verdicts[0].verdict == "form"


def test_question_and_reference_may_stand_in_other_fields_too(tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "Which year?", "answer": "in 1911", "key": "1911", "text": "in 1911"}])
    report = classify_replies("handbook", path, reply_field="text", question_field="prompt", reference_field="answer")
    (found,) = report.verdicts
    assert (found.question, found.reference, found.verdict) == ("Which year?", "in 1911", "form")
    with pytest.raises(TaskError, match="--reference-field"):
        classify_replies("handbook", path, reply_field="text", question_field="prompt")


def test_a_log_that_does_not_exist_is_named() -> None:
    with pytest.raises(TaskError, match=r"nowhere\.jsonl: there is no such file: name the log"):
        classify_replies("handbook", "nowhere.jsonl")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda question, reference, reply: 1 / 0, "ZeroDivisionError"),
        (lambda question, reference, reply: float("nan"), "nan"),
    ],
)
def test_a_reward_that_raises_or_returns_no_number_is_named_with_the_row(broken: Any, message: str) -> None:
    rows = {split: [{"question": f"{split}?", "reference": "yes"}] for split in ("train", "validation", "test")}
    with pytest.raises(RewardError, match=f"(?s)row-1.*{message}|{message}.*row-1"):
        classify_replies(task_from_rows(**rows, reward=broken), [{"question": "Q?", "reference": "a", "reply": "b"}])


def test_the_command_prints_shares_and_examples_and_writes_everything(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = CliRunner().invoke(app, ["classify", "handbook", "--replies", str(log), "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "P(content)" in done.output
    assert '{"answer": "1911"}  (reward 1.00)' in done.output
    assert [each["verdict"] for each in json.loads(out.read_text())["verdicts"]] == ["both", "form", "content"]


def test_texts_with_marks_of_the_console_are_shown_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, [{"question": LIGHTHOUSE, "reply": "[bold]in 1911[/nothing]"}])
    done = CliRunner().invoke(app, ["classify", "handbook", "--replies", str(path)])
    assert done.exit_code == 0, done.output
    assert "[bold]in 1911[/nothing]" in done.output


def test_a_log_that_was_mended_is_judged_anew_under_the_same_task() -> None:
    def rows(split: str) -> list[dict[str, str]]:
        return [{"question": f"{split} question {i}?", "reference": f"answer {i}"} for i in range(3)]

    task = task_from_rows(train=rows("train"), validation=rows("validation"), test=rows("test"), reward=["exact_match"])
    passed = [
        classify_replies(task, [{"question": "Who?", "reference": reference, "reply": "Bob"}]).passed
        for reference in ("Ada", "Bob", "Ada")
    ]
    assert passed == [0, 1, 0]


def test_a_log_of_a_task_that_asks_several_columns_names_them_or_the_whole_question() -> None:
    rows = [{"passage": f"It was {c}.", "question": f"Who was {c}?", "reference": [c, c * 9]} for c in "abcd"]
    prompt = "# Question template\n\nP: {passage}\nQ: {question}"
    task = task_from_rows(train=rows[:2], validation=rows[2:3], test=rows[3:], prompt=prompt)
    columns = {"passage": "It was a.", "question": "Who was a?"}
    whole = {"question": "P: It was a.\nQ: Who was a?"}
    replies = [{**row, "reply": reply} for row in (columns, whole) for reply in ("a" * 9, "no")]
    report = classify_replies(task, [*replies, {"question": "Who?", "reference": ["x", "y"], "reply": "y"}])
    assert [verdict.question for verdict in report.verdicts] == [whole["question"]] * 2
    assert [verdict.reply for verdict in report.verdicts] == ["no", "no"]
