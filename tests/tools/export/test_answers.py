"""Answers to a file of questions survive a kill."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from nslora.tools.export.answers import answer_in_lots
from nslora.tools.files import read_jsonl

DIALOGUES = [[{"role": "user", "content": str(i)}] for i in range(10)]
KILLED = """
import os, signal, sys
from pathlib import Path
from nslora.tools.export.answers import answer_in_lots

def ask(lot):
    asked.extend(lot)
    if len(asked) > 6:
        with Path(sys.argv[1]).open("a") as file:
            file.write('["half a l')
        os.kill(os.getpid(), signal.SIGKILL)
    return [dialogue[-1]["content"] for dialogue in lot]

asked = []
answer_in_lots(ask, [[{"role": "user", "content": str(i)}] for i in range(10)], Path(sys.argv[1]), lot=3)
"""


def test_after_kill_9_no_question_is_asked_twice(tmp_path: Path) -> None:
    kept, asked = tmp_path / "kept", list[str]()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(kept)], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert read_jsonl(kept) == [["0", "1", "2"], ["3", "4", "5"]]

    def ask(lot: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        asked.extend(dialogue[-1]["content"] for dialogue in lot)
        return [dialogue[-1]["content"] for dialogue in lot]

    replies = answer_in_lots(ask, DIALOGUES, kept, lot=3)
    assert replies == [str(i) for i in range(10)]
    assert asked == ["6", "7", "8", "9"]
