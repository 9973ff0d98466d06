"""The chat model that asks through files."""

import threading
import time
from pathlib import Path

from file_chat import FileChat
from langchain_core.messages import HumanMessage

from nslora.tools.files import write_text


def test_a_request_is_written_once_and_its_answer_is_kept(tmp_path: Path) -> None:
    chat = FileChat(folder=tmp_path / "asked", poll_s=0.01)
    request = [HumanMessage("Which prompt?")]

    def answer() -> None:
        while not (tmp_path / "asked" / "1.request.md").is_file():
            time.sleep(0.01)
        write_text(tmp_path / "asked" / "1.answer.md", "This one.\n")

    person = threading.Thread(target=answer)
    person.start()
    assert chat.invoke(request).text == "This one."
    person.join()
    assert "Which prompt?" in (tmp_path / "asked" / "1.request.md").read_text()
    assert FileChat(folder=tmp_path / "asked").invoke(request).text == "This one."  # after a resume: no new request
    write_text(tmp_path / "asked" / "2.answer.md", "Another.\n")
    assert chat.invoke([HumanMessage("And now?")]).text == "Another."
