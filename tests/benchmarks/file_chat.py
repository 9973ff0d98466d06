"""A chat model that asks through files, so that any person or model can sit in the editor's seat.

    python tests/benchmarks/file_chat.py handbook --style label --folder build/by-hand --strategy textgrad

Request 1 is written to `build/by-hand-asked/1.request.md`. The answer is the text of `1.answer.md`, written beside it;
write it under another name first and rename it, so that no half of it is read. The run waits as long as it takes. After
Ctrl-C the same command goes on, and asks for no answer twice. Options are fields of RunSettings, as in --max-rounds 2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from langchain_core.messages import AIMessage, BaseMessage

from nslora import Run, load_task
from nslora.tools.editor.call_log import request_sha256
from nslora.tools.editor.local_chat import LocalChat
from nslora.tools.files import write_text
from nslora.tools.workspace.record import RUN_FILE

POLL_S = 0.5


class FileChat(LocalChat):
    """Writes each request to a file and waits for the answer's file. Its token counts are estimates."""

    folder: Path
    poll_s: float = POLL_S

    @property
    def _llm_type(self) -> str:
        return "files"

    def reply_to(self, messages: list[BaseMessage], stop: Sequence[str]) -> AIMessage:
        number = self._number(request_sha256(messages))
        answer = self.folder / f"{number}.answer.md"
        if not answer.is_file():
            text = "\n\n".join(f"<!-- {message.type} -->\n\n{message.text}" for message in messages)
            write_text(self.folder / f"{number}.request.md", text + "\n")
            print(f"{self.folder / f'{number}.request.md'} waits for {answer.name}", flush=True)
        while not answer.is_file():
            time.sleep(self.poll_s)
        return AIMessage(answer.read_text(encoding="utf-8").strip("\n"))

    def _number(self, request: str) -> int:
        """The number of a request; one that was asked before keeps its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self.folder / "requests.txt"
        asked = known.read_text(encoding="utf-8").split() if known.is_file() else []
        if request not in asked:
            asked.append(request)
            write_text(known, "\n".join(asked) + "\n")
        return asked.index(request) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="what `nslora run` takes")
    parser.add_argument("--style", help="of the task handbook")
    parser.add_argument("--folder", type=Path, required=True, help="of the run")
    options, rest = parser.parse_known_args()
    if len(rest) % 2 or not all(name.startswith("--") for name in rest[::2]):
        parser.error(f"settings are pairs, as in --max-rounds 2: found {' '.join(rest)}")
    pairs = zip(rest[::2], rest[1::2], strict=True)
    settings = {name.removeprefix("--").replace("-", "_"): yaml.safe_load(value) for name, value in pairs}
    task = load_task(options.task, **({"style": options.style} if options.style else {}))
    chat = FileChat(folder=options.folder.with_name(options.folder.name + "-asked"))
    begun = (options.folder / RUN_FILE).is_file()
    run = (
        Run.open(options.folder, task=task, editor=chat)
        if begun
        else Run.create(options.folder, task=task, editor=chat, notify=print, **settings)
    )
    result = run.adapt()
    print(f"{result.stop} Test: {result.report['test']['result']}")


if __name__ == "__main__":
    main()
