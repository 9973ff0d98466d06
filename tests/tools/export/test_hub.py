"""A merged folder goes to a hub on loopback that speaks the protocol of huggingface_hub."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save_file

from nslora.tools.errors import ExportError, SettingsError
from nslora.tools.export.hub import licence_of, push, refuse_name, write_card
from nslora.tools.prompt import Prompt

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
    """Keeps what is committed. files: their contents by path; made: the repositories asked for.

    large: contents that came by Git LFS, by their SHA-256, as the hub wants those of weights; broken: it stores none.
    """

    def __init__(self, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.broken = False
        self.made: list[dict[str, Any]] = []
        self.refuses = refuses


def _mode(file: dict[str, Any]) -> str:
    """As the hub decides it: weights and whatever is above 10 MB go by LFS."""
    return "lfs" if file["path"].endswith(".safetensors") or file["size"] > 10_000_000 else "regular"


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
            files = [{**each, "uploadMode": _mode(each), "shouldIgnore": False} for each in json.loads(body)["files"]]
            return self._answer({"files": files})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self._answer(
                {"transfer": "basic", "objects": [self._place(each) for each in json.loads(body)["objects"]]}
            )
        if self.path.startswith("/lfs/"):  # the client asks whether all arrived
            arrived = len(self.server.large.get(self.path.removeprefix("/lfs/"), b"")) == json.loads(body)["size"]
            return self._answer({}, 200 if arrived else 404)
        if "/commit/" not in self.path:  # the card's header is checked
            return self._answer({"warnings": [], "errors": []})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                self.server.files[entry["value"]["path"]] = self.server.large[entry["value"]["oid"]]
        return self._answer({"commitUrl": "https://huggingface.co/me/pair/commit/1", "commitOid": "1", "success": True})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.broken:
            return self._answer({"error": "no space"}, 400)
        assert hashlib.sha256(content).hexdigest() == self.path.removeprefix("/lfs/")
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        return self._answer({})

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where a large file goes, and where the client asks whether it arrived; nowhere if it is there already."""
        if wanted["oid"] in self.server.large:
            return wanted
        where = {"href": f"http://127.0.0.1:{self.server.server_port}/lfs/{wanted['oid']}"}
        return {**wanted, "actions": {"upload": where, "verify": where}}

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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # a protocol of its own, in a binary
    yield server
    server.shutdown()


def test_the_folder_arrives_with_a_card_that_says_what_it_is(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = {"layer.weight": np.arange(40_000, dtype=np.float32)}
    save_file(weights, tmp_path / "model.safetensors")
    write_card(tmp_path, FACTS, "# System\n\n```\nBe brief.\n```\n", licence_of("org/base"))
    push(tmp_path, "me/pair")
    assert hub.made[0]["name"] == "pair"
    assert hub.made[0]["visibility"] == "private"
    assert hub.files["config.json"] == b"{}"
    assert (load(hub.files["model.safetensors"])["layer.weight"] == weights["layer.weight"]).all()
    assert list(hub.large.values()) == [hub.files["model.safetensors"]]
    card = hub.files["README.md"].decode()
    assert "license: mit\n" in card
    assert "base_model: org/base\n" in card
    assert "| this model | 0.833 |" in card
    assert "ab" * 32 in card
    assert "Be brief." in card
    write_card(tmp_path, FACTS, Prompt().render(), "mit")
    assert "the prompt trained into them" in (tmp_path / "README.md").read_text()


def test_what_the_hub_does_not_take_is_said_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"one": np.ones(4)}, tmp_path / "model.safetensors")
    hub.broken = True
    with pytest.raises(ExportError, match=r"me/pair cannot be pushed.*model\.safetensors.*is whole"):
        push(tmp_path, "me/pair")
    hub.refuses = True
    with pytest.raises(ExportError, match=r"me/pair cannot be pushed.*hf auth login.*is whole"):
        push(tmp_path, "me/pair")
    with pytest.raises(SettingsError, match=r"--push pair: wanted a repository such as"):
        refuse_name("pair")
