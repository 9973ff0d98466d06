"""The record of an editor's calls: nothing is paid twice, and a replay calls nobody."""

import json
from pathlib import Path

import pytest
from edits import RefusedRequestError
from langchain_core.messages import HumanMessage
from pydantic import SecretStr

from nslora.tools.editor.call_log import EditorLog, RecordedChat, request_sha256
from nslora.tools.editor.editor import Caps, Edit, EditFailedError, Editor
from nslora.tools.errors import DamagedError, EditorCallError, EditorError
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example
from nslora.tools.testing.scripted_chat import ScriptedChat, improved

OLD, NEW = Prompt("Be brief."), Prompt("Reply in capitals.")
FAILURE = Graded(Example("train-1", "Who?", "Ada", {}), "ada", Score(0.0, {"style": 0.0}, "Use capitals.", None))


class KeyedChat(ScriptedChat):
    model_name: str = "tiny-1"
    api_key: SecretStr = SecretStr("a-plain-secret")


def record(path: Path) -> Edit:
    return Editor(KeyedChat(["critique \ud83d", improved(NEW)]), log=EditorLog(path)).edit(OLD, [FAILURE])


def test_a_line_holds_what_a_replay_needs_and_no_key(tmp_path: Path) -> None:
    record(tmp_path / "editor.jsonl")
    text = (tmp_path / "editor.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["purpose"] for row in rows] == ["critique", "improve 1"]
    assert {row["model"] for row in rows} == {"KeyedChat:tiny-1"}
    assert set(rows[0]) == {
        "request_sha256",
        "model",
        "purpose",
        "reply",
        "input_tokens",
        "output_tokens",
        "estimated",
        "seconds",
        "error",
        "call_failed",
        "reply_bound",
        "request",
        "finish_reason",
        "refusal",
        "reasoning_tokens",
        "status",
        "round",
    }
    assert [row["error"] for row in rows] == ["", ""]
    assert "a-plain-secret" not in text


def test_a_replay_calls_nobody_and_costs_the_same(tmp_path: Path) -> None:
    edit = record(tmp_path / "editor.jsonl")
    assert Editor(RecordedChat(tmp_path / "editor.jsonl")).edit(OLD, [FAILURE]) == edit


def test_a_resumed_run_pays_only_for_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "editor.jsonl"
    dies = KeyedChat(["critique", TimeoutError("late")])
    with pytest.raises(EditorCallError):
        Editor(dies, log=EditorLog(path)).edit(OLD, [FAILURE])
    resumed = KeyedChat([improved(NEW)])
    edit = Editor(resumed, log=EditorLog(path)).edit(OLD, [FAILURE])
    assert edit.prompts == (NEW,)
    assert len(resumed.requests) == 1
    assert edit.usage.calls == 2
    nobody = KeyedChat([])
    assert Editor(nobody, log=EditorLog(path), caps=Caps(calls=0)).edit(OLD, [FAILURE]).prompts == (NEW,)


def test_a_call_that_failed_is_on_record_and_is_made_again_and_left_out_of_a_replay(tmp_path: Path) -> None:
    path = tmp_path / "editor.jsonl"
    chat = KeyedChat(["critique", TimeoutError("late, with a-plain-secret"), improved(NEW)])
    editor = Editor(chat, log=EditorLog(path))
    with pytest.raises(EditorCallError, match="resume the run; no round was counted"):
        editor.edit(OLD, [FAILURE])
    assert editor.consecutive_failures == 0
    edit = editor.edit(OLD, [FAILURE])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["purpose"], row["call_failed"]) for row in rows] == [
        ("critique", False),
        ("improve 1", True),
        ("improve 1", False),
    ]
    assert "failed with TimeoutError: late, with [secret]." in rows[1]["error"]
    assert Editor(RecordedChat(path)).edit(OLD, [FAILURE]) == edit


def test_a_refused_request_is_on_record_is_made_again_and_fails_again_in_a_replay(tmp_path: Path) -> None:
    path = tmp_path / "editor.jsonl"
    chat = KeyedChat(["critique", RefusedRequestError("late, with a-plain-secret"), improved(NEW)])
    editor = Editor(chat, log=EditorLog(path))
    with pytest.raises(EditFailedError) as first:
        editor.edit(OLD, [FAILURE])
    edit = editor.edit(OLD, [FAILURE])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["purpose"], row["error"]) for row in rows] == [
        ("critique", ""),
        ("improve 1", "The editor KeyedChat:tiny-1 failed with RefusedRequestError (HTTP 400): late, with [secret]."),
        ("improve 1", ""),
    ]
    assert rows[1]["seconds"] >= 0
    assert len(EditorLog(path)) == 2
    again = Editor(RecordedChat(path))
    with pytest.raises(EditFailedError) as replayed:
        again.edit(OLD, [FAILURE])
    assert str(replayed.value) == str(first.value)
    assert again.edit(OLD, [FAILURE]).prompts == edit.prompts
    assert again.spent.calls == editor.spent.calls == 4


def test_another_model_does_not_answer_from_this_ones_record(tmp_path: Path) -> None:
    record(tmp_path / "editor.jsonl")
    other = ScriptedChat(["critique", improved(Prompt("Shout."))])
    assert Editor(other, log=EditorLog(tmp_path / "editor.jsonl")).edit(OLD, [FAILURE]).prompts == (Prompt("Shout."),)


def test_a_miss_shows_the_request_that_was_new_and_says_how_to_record_it(tmp_path: Path) -> None:
    record(tmp_path / "editor.jsonl")
    with pytest.raises(EditorError, match=r"new: 'You will give feedback.*run once with the editor itself"):
        Editor(RecordedChat(tmp_path / "editor.jsonl")).edit(Prompt("Another."), [FAILURE])


def test_a_line_that_a_crash_cut_off_is_left_out_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "editor.jsonl"
    record(path)
    path.write_text(path.read_text()[:-20])
    log = EditorLog(path)
    assert len(log) == 1
    chat = KeyedChat([improved(NEW)])
    Editor(chat, log=log).edit(OLD, [FAILURE])
    assert len(chat.requests) == 1
    assert len(EditorLog(path)) == 2


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b'{"request_sha256": "x"}'])
def test_a_damaged_line_is_named_wherever_it_stands(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "editor.jsonl"
    record(path)
    whole = path.read_bytes()
    for number, content in ((1, line + b"\n" + whole), (whole.count(b"\n") + 1, whole + line + b"\n")):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=f"editor.jsonl:{number}: this line is not a recorded editor call"):
            RecordedChat(path)


def test_a_request_is_named_by_its_roles_and_texts() -> None:
    assert request_sha256([HumanMessage("a")]) == request_sha256([HumanMessage("a", id="7")])
    assert request_sha256([HumanMessage("a")]) != request_sha256([HumanMessage("b")])
