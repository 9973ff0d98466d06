"""Servers are started, found ready, and ended with whoever started them."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from nslora.tools.errors import ExportError, SettingsError
from nslora.tools.export import serving
from nslora.tools.export.clients import ask_server
from nslora.tools.export.serving import LOOPBACK, ProcessServer, engine_named, free_port, prepared, started

FAKE = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def reply(self, value):
        body = json.dumps(value).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        self.reply({"data": [{"id": "pair"}]})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = f" {asked['messages'][-1]['content']} {asked['max_tokens']}"
        self.reply({"choices": [{"message": {"content": said}}]})
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_answers_and_ends_with_its_owner(tmp_path: Path) -> None:
    script, port = tmp_path / "fake.py", free_port()
    script.write_text(FAKE)
    server = ProcessServer([sys.executable, str(script), str(port)], LOOPBACK, port)
    dialogue = [{"role": "user", "content": "Who?"}]
    assert ask_server(server.base_url, [dialogue], max_new_tokens=3) == ["Who? 3"]
    server.stop()
    assert not server.running
    with pytest.raises(ExportError, match=r"does not answer"):
        ask_server(server.base_url, [dialogue], max_new_tokens=3)
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, {str(serving.KEEPER)!r}, sys.executable, "
            f"{str(script)!r}, '{port}'], stdin=subprocess.PIPE)\ntime.sleep(600)",
        ]
    )
    assert _answers(port)
    family = psutil.Process(owner.pid).children(recursive=True)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    gone, alive = psutil.wait_procs(family, timeout=15)
    assert (len(gone), alive) == (2, [])


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"does not serve the model \(ValueError: no such model"):
        ProcessServer([sys.executable, "-c", "raise ValueError('no such model')"], LOOPBACK, free_port())
    slow = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(ExportError, match=r"slow does not answer within 1 s"):
        ProcessServer(slow, LOOPBACK, free_port(), name="slow", start_s=1)


def test_the_first_engine_that_is_there_and_takes_the_model_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = {"fastapi", "uvicorn"}
    monkeypatch.setattr(serving.shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(serving.sys, "executable", "/nowhere/python")
    monkeypatch.delenv(serving.VLLM, raising=False)
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: name in there or None)
    assert engine_named(None, "llama") == "transformers"
    there.add("xllamacpp")
    assert engine_named(None, "llama") == "llamacpp"
    assert engine_named(None, "gpt2") == "transformers"
    there.add("vllm")
    assert engine_named(None, "gpt2") == "vllm"
    with pytest.raises(ExportError, match=r"does not take a model of type gpt2"):
        engine_named("llamacpp", "gpt2")
    with pytest.raises(SettingsError, match=r"--engine tgi: wanted llamacpp, transformers, vllm"):
        engine_named("tgi", "llama")
    there.clear()
    with pytest.raises(ExportError, match=r"No server is installed: pip install 'nslora\[llamacpp\]'"):
        engine_named(None, "llama")


@pytest.mark.engines
def test_transformers_serve_gives_the_runs_own_replies(
    known_pair: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path))
    known = known_pair()
    model = prepared(known.pair, "transformers", "f16")
    assert prepared(known.pair, "transformers", "f16") == model
    server = started("transformers", model, "pair")
    try:
        asked = [[{"role": "user", "content": "Who keeps the mill?"}]]
        for prompt in (True, False):
            replies = ask_server(server.base_url, asked, max_new_tokens=12, model=str(model), prompt=prompt)
            assert (replies == [known.replies[0]]) == prompt
    finally:
        server.stop()


def _answers(port: int) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            return httpx.get(f"http://{LOOPBACK}:{port}/v1/models", timeout=1).is_success
        except httpx.HTTPError:
            time.sleep(0.1)
    return False
