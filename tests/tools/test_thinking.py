"""Replies and references that begin with thinking, from the rows to the training job."""

from pathlib import Path
from typing import Any

import pytest

from nslora.tools.dataset.remade import RemadeRow, known_rows, read_rows, write_rows
from nslora.tools.dataset.selection import Material, training_rows
from nslora.tools.editor.failures_view import failure_texts
from nslora.tools.errors import TaskError
from nslora.tools.evaluation.records import Evaluation, Passing, read_evaluation, write_evaluation
from nslora.tools.evaluation.rollouts import NO_ANSWER, grade
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.thinking import split_thinking
from nslora.tools.workspace.budget import plan_of
from nslora.tools.workspace.settings import RunSettings

THOUGHT = "<think>\n17 or 18?\n</think>\n\n"


def task_of(reference: str, check: Any = "numeric") -> Task:
    rows = [{"question": f"{i} and how many?", "reference": reference.replace("18", str(i + 18))} for i in range(6)]
    return task_from_rows(train=rows[:2], validation=rows[2:4], test=rows[4:], reward=[check])


@pytest.mark.parametrize(
    ("reply", "earned"),
    [
        ("18", 1.0),
        (f"{THOUGHT}18", 1.0),
        (f"{THOUGHT}17", 0.0),
        ("17 or 18?</think>\n17", 0.0),
        ("<think>It is 18", 0.0),
        ("<think>It is 18</think>", 0.0),
        ("<think>It is 17</think> <think>It is 18", 0.0),
    ],
)
@pytest.mark.parametrize("reference", ["18", f"{THOUGHT}18"])
def test_a_reply_is_judged_by_what_follows_its_thinking(reply: str, earned: float, reference: str) -> None:
    task = task_of(reference)
    (graded,) = grade(task.reward, task.train[:1], [reply])
    assert graded.score.value == earned
    assert graded.thinking + graded.reply == reply
    assert task.reward(task.train[0], reply).value == earned
    assert graded.score.feedback.startswith(NO_ANSWER) == (not graded.reply)
    assert "It is 18" not in str(failure_texts(graded))


def test_a_references_thinking_is_learnt_and_not_wanted_of_a_reply() -> None:
    task = task_of(f"{THOUGHT}18", "exact_match")
    row = task.train[0]
    assert (row.reference, row.target) == ("18", f"{THOUGHT}18")
    assert task.reward(row, "18").passed
    assert task.hash == task_of(f"{THOUGHT}18", "exact_match").hash != task_of("18", "exact_match").hash
    material = Material(content=(row.id,), mastered=(), form=())
    (learnt,) = training_rows(task.train, material, task.prompt, {}, everything=False, replay_share=0, seed="")
    assert learnt.completion == f"{THOUGHT}18"
    assert any("begin with thinking" in note for note in plan_of(task, RunSettings()).warnings)
    assert any("reply may take" in note for note in plan_of(task, RunSettings(thinking="on")).warnings)
    with pytest.raises(TaskError, match="ends inside its thinking"):
        task_of("<think>18")


def test_a_replys_thinking_stays_on_record_and_is_trained(tmp_path: Path) -> None:
    task = task_of("18")
    passing = [Passing(task.train[0].id, "18", THOUGHT), Passing(task.train[1].id, "19")]
    write_evaluation(tmp_path / "e.jsonl", Evaluation("e", passing=passing))
    assert read_evaluation(tmp_path / "e.jsonl").passing == passing
    assert (tmp_path / "e.jsonl").read_text().count('"thinking"') == 1  # files without thinking stay as they were
    strict = task_of("18", {"check": "regex", "pattern": "ANSWER: .*"})  # no reference earns it: replies are wanted
    row, reply = strict.train[0], "ANSWER: 18"
    own = {row.id: f"{THOUGHT}{reply}"}
    rows = known_rows(strict.reward, strict.prompt, strict.train[:1], own=own, mended={}, adapter=None)
    assert rows == [RemadeRow(row.id, row.question, reply, strict.prompt.hash, None, 1.0, "", THOUGHT)]
    write_rows(tmp_path / "r.jsonl", rows)
    assert read_rows(tmp_path / "r.jsonl") == rows
    assert rows[0].as_trl(strict.prompt)["completion"][0]["content"] == f"{THOUGHT}{reply}"
    material = Material(content=(row.id,), mastered=(), form=())
    remade = {row.id: rows}
    (learnt,) = training_rows(strict.train, material, strict.prompt, remade, everything=False, replay_share=0, seed="")
    assert learnt.completion == f"{THOUGHT}{reply}"


def test_a_text_without_thinking_is_all_answer() -> None:
    for text in ("", "18", "a < b", "think> 18", " the tag <think> opens"):
        assert split_thinking(text) == ("", text)
