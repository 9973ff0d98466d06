"""`nslora answer` and `nslora chat` on a finished run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.run import Run
from nslora.tools.errors import ExportError, SettingsError
from nslora.tools.workspace.tables import read_table


def test_a_file_of_questions_is_answered_as_the_test_was(finished: Run, tmp_path: Path) -> None:
    test = read_table(finished.folder / "result" / "test.csv")
    questions, out = tmp_path / "questions.jsonl", tmp_path / "replies.csv"
    rows = [{"question": row["question"], "tags": ["a", 1]} for row in test]
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["answer", str(finished.folder), str(questions), "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert [row["reply"] for row in read_table(out)] == [row["result_reply"] for row in test]
    assert read_table(out)[0]["tags"] == '["a", 1]'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["questions.jsonl", "replies.csv"]
    with pytest.raises(ExportError, match=r"is there already"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    with pytest.raises(SettingsError, match=r"wanted a name that ends in \.csv or \.jsonl"):
        CliRunner().invoke(app, [*command[:4], str(tmp_path / "replies.txt")], catch_exceptions=False)


def test_a_chat_shows_the_prompt_and_both_replies(finished: Run) -> None:
    asked = "Name the keeper of the mill.\n/new\nWho?\n\n"
    done = CliRunner().invoke(app, ["chat", str(finished.folder), "--max-tokens", "4"], input=asked)
    assert done.exit_code == 0, done.output
    assert done.output.count("base") >= 2
    assert done.output.count("result") >= 2
    assert "<|im_start|>user\nName the keeper of the mill." in done.output
