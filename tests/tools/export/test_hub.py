"""A merged folder goes to a hub on loopback that speaks the protocol of huggingface_hub."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nslora.tools.errors import ExportError, SettingsError
from nslora.tools.export.hub import licence_of, push, refuse_name, write_card

FACTS: dict[str, Any] = {
    "base": "org/base",
    "run": "first",
    "task": "handbook",
    "task_hash": "ab" * 32,
    "prompt": "0123456789abcdef",
    "adapter_sha256": None,
    "test": {"base": 0.0, "result": 0.833, "questions": 60},
    "versions": {"nslora": "0.2.0"},
}


class Hub(ThreadingHTTPServer):
    """Keeps what is committed. files: their contents by path; made: the repositories asked for."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.refuses = refuses


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            return self._answer({"error": "no"}, 401)
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self._answer({"url": f"http://127.0.0.1:{self.server.server_port}/me/pair"})
        if "/preupload/" in self.path:
            files = [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
            return self._answer({"files": files})
        if "/commit/" not in self.path:  # the card's header is checked
            return self._answer({"warnings": [], "errors": []})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self._answer({"commitUrl": "https://huggingface.co/me/pair/commit/1", "commitOid": "1", "success": True})

    def do_GET(self) -> None:
        self._answer({"id": "org/base", "cardData": {"license": "mit"}, "siblings": [], "tags": [], "private": False})

    def _answer(self, value: Any, status: int = 200) -> None:
        written = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()


def test_the_folder_arrives_with_a_card_that_says_what_it_is(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_card(tmp_path, FACTS, "# System\n\n```\nBe brief.\n```\n", licence_of("org/base"))
    push(tmp_path, "me/pair")
    assert hub.made[0]["name"] == "pair"
    assert hub.made[0]["visibility"] == "private"
    assert hub.files["config.json"] == b"{}"
    card = hub.files["README.md"].decode()
    assert "license: mit\n" in card
    assert "base_model: org/base\n" in card
    assert "| this model | 0.833 |" in card
    assert "ab" * 32 in card
    assert "Be brief." in card


def test_what_the_hub_does_not_take_is_said_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub.refuses = True
    with pytest.raises(ExportError, match=r"me/pair cannot be pushed.*hf auth login.*is whole"):
        push(tmp_path, "me/pair")
    with pytest.raises(SettingsError, match=r"--push pair: wanted a repository such as"):
        refuse_name("pair")
