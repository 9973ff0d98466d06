"""`nslora answer` and `nslora chat` on a finished run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.run import Run
from nslora.tools.errors import ExportError, SettingsError
from nslora.tools.export.answers import LOT
from nslora.tools.files import read_jsonl
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.workspace.tables import read_table

ROWS = 20 * LOT


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


@pytest.mark.engines
def test_kill_9_of_the_command_costs_one_lot(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions, out = tmp_path / "questions.jsonl", tmp_path / "replies.jsonl"
    questions.write_text("".join(f'{{"question": "Who keeps number {i}?"}}\n' for i in range(ROWS)))
    command = ["answer", str(finished.folder), str(questions), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "nslora.graph.cli", *command], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not (kept := list(tmp_path.glob(".replies.jsonl.*.partial"))) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    before = sum(len(lot) for lot in read_jsonl(kept[0]))
    assert LOT <= before < ROWS
    asked: list[str] = []
    generate = LocalPolicy.generate

    def counted(policy: LocalPolicy, dialogues: Any, **given: Any) -> Any:
        asked.extend(each[-1]["content"] for each in dialogues)
        return generate(policy, dialogues, **given)

    monkeypatch.setattr(LocalPolicy, "generate", counted)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert len(asked) == len(set(asked)) == ROWS - before
    assert len(read_jsonl(out)) == ROWS
    assert not list(tmp_path.glob(".*"))


def test_a_chat_shows_the_prompt_and_both_replies(finished: Run) -> None:
    asked = "Name the keeper of the mill.\n/new\nWho?\n\n"
    done = CliRunner().invoke(app, ["chat", str(finished.folder), "--max-tokens", "4"], input=asked)
    assert done.exit_code == 0, done.output
    assert done.output.count("base") >= 2
    assert done.output.count("result") >= 2
    assert "<|im_start|>user\nName the keeper of the mill." in done.output
