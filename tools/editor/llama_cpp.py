"""A GGUF file as a chat model: llama.cpp's server on this machine, started for a run and stopped with it."""

from __future__ import annotations

import atexit
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr, SecretStr

from nslora.tools.editor.local_chat import LLAMA_CPP
from nslora.tools.errors import ModelError
from nslora.tools.files import read_json, write_json
from nslora.tools.inference.weights import cache_folder

GGUF_MAGIC = b"GGUF"
REPLY_TOKENS = 1024  # a small model may repeat itself without end
CONTEXT = 8192  # tokens of request and reply together; a document with its failures takes 2,000 to 4,000
START_S = 600.0  # the weights may lie on a slow disk
_STARTING = threading.Lock()
_SERVERS: dict[Path, tuple[LlamaCppServer, set[object]]] = {}  # of this process, with who uses them; one for a file
LOOPBACK = "127.0.0.1"
SCRIPT = Path(__file__).with_name("llama_cpp_server.py")


class LlamaCppServer:
    """llama.cpp's server for one file, as a child process on a free port of the loopback address.

    It ends with this process, also after a kill: its standard input is closed then. A server that is left all the same
    (a forked process holds the pipe, a machine that was suspended) is found by its record in the cache folder and ended
    by the next one.
    """

    def __init__(self, file: Path, *, context: int = CONTEXT, host: str = LOOPBACK, port: int | None = None) -> None:
        """Start the server and wait until it answers.

        Args:
            file: The GGUF file.
            context: Tokens of request and reply together; 0 takes the model's own.
            host: Where it listens.
            port: None: a free one.

        Raises:
            ModelError: If it cannot serve the file.
        """
        end_stale_servers()
        port = port or free_port()
        self.base_url = f"http://{host}:{port}/v1"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, str(SCRIPT), str(file), str(port), str(context), str(_threads()), host]
        # A session of its own: Ctrl-C in the terminal reaches the run, which decides when the server ends.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        atexit.register(self.stop)
        self._record = _records() / f"{self._process.pid}.json"
        write_json(self._record, {"server": _identity(self._process.pid), "owner": _identity(os.getpid())})
        self._wait(f"http://{host}:{port}/health", file)

    def stop(self) -> None:
        """End the server; nothing happens if it has ended."""
        atexit.unregister(self.stop)
        if self.running:
            _end(psutil.Process(self._process.pid))
        self._process.wait()
        self._record.unlink(missing_ok=True)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def _wait(self, address: str, file: Path) -> None:
        until = time.monotonic() + START_S
        while self.running and time.monotonic() < until:
            try:
                with urllib.request.urlopen(address, timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        self.stop()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        said = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no word")
        raise ModelError(
            f"llama.cpp's server cannot serve {file} ({said.strip()[:300]}): name a GGUF file of a chat model that "
            "this version of xllamacpp reads."
        )


class LlamaCppChat(ChatOpenAI):
    """The chat model behind `gguf:FILE`. The server starts with the first request.

    Replies are drawn at temperature 0.7 with a fixed seed: the same requests in the same order get the same replies,
    and several prompts of one edit differ.

    Attributes:
        file: The GGUF file of a model with a chat template.
    """

    file: Path
    _user: object = PrivateAttr(default_factory=object)  # the same in the copies that `bind` and its like make

    @property
    def _llm_type(self) -> str:
        return LLAMA_CPP

    def _serve(self) -> None:
        """Start the file's server, or start it again if it ended, and point the clients at it."""
        with _STARTING:
            server, users = _SERVERS.get(self.file, (None, set()))
            if server is None or not server.running:
                if server is not None:
                    server.stop()
                server = LlamaCppServer(self.file)
            _SERVERS[self.file] = server, {*users, self._user}
            for client in (self.root_client, self.root_async_client):
                client.base_url = server.base_url

    def close(self) -> None:
        """Stop the server, unless another chat model of this process uses it; the next request starts it again."""
        with _STARTING:
            if self.file not in _SERVERS:
                return
            server, users = _SERVERS.pop(self.file)
            if others := users - {self._user}:
                _SERVERS[self.file] = server, others
            else:
                server.stop()

    def _generate(self, messages: list[BaseMessage], *args: Any, **settings: Any) -> ChatResult:
        self._serve()
        return super()._generate(messages, *args, **settings)

    def _stream(self, *args: Any, **settings: Any) -> Iterator[ChatGenerationChunk]:
        self._serve()
        yield from super()._stream(*args, **settings)


def llama_cpp_chat(file: str, *, timeout_s: float, seed: int = 0) -> LlamaCppChat:
    """Make the chat model of a GGUF file, without starting its server.

    Args:
        file: Path of the file; `~` is the home folder.
        timeout_s: Timeout of one request, in seconds.
        seed: Seed of the replies.

    Raises:
        ModelError: There is no such file, it is no GGUF file, or the package xllamacpp is missing.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"There is no file {path}: name the GGUF file of a chat model, as in gguf:models/qwen.gguf.")
    with path.open("rb") as opened:
        if opened.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ModelError(f"{path} is no GGUF file: name the GGUF file of a chat model.")
    refuse_no_llama_cpp(path)
    return LlamaCppChat(
        file=path.resolve(),
        model=path.name,
        base_url="http://127.0.0.1/v1",  # the server's own address replaces it
        api_key=SecretStr("none"),
        timeout=timeout_s,
        max_retries=0,  # `EditorCalls` makes a call again
        temperature=0.7,
        max_completion_tokens=REPLY_TOKENS,
        seed=seed,
        profile={"structured_output": True},  # llama.cpp turns a JSON schema into a grammar, with any model
    )


def refuse_no_llama_cpp(file: Path) -> None:
    """Raise ModelError if the package of llama.cpp's server is missing."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ModelError(f"gguf:{file} needs llama.cpp's server: pip install 'nslora[llamacpp]'.")


def free_port() -> int:
    """A free port of the loopback address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end_stale_servers() -> None:
    """End the servers whose owner is gone, and remove their records."""
    for record in _records().glob("*.json"):
        try:
            known = read_json(record)
        except (OSError, ValueError):
            continue  # another process is writing or removing it
        if _alive(known["owner"]) is None:
            if left := _alive(known["server"]):
                _end(left)
            record.unlink(missing_ok=True)


def _threads() -> int:
    """`OMP_NUM_THREADS`, else the cores that this process may use: the policy waits while the editor answers."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(psutil.Process().cpu_affinity() or ()) or os.cpu_count() or 1)


def _records() -> Path:
    folder = cache_folder() / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _identity(pid: int) -> dict[str, float]:
    """A process number with its start time: the number alone is given out again."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def _alive(known: dict[str, float]) -> psutil.Process | None:
    try:
        process = psutil.Process(int(known["pid"]))
        same = abs(process.create_time() - known["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.NoSuchProcess:
        return None


def _end(process: psutil.Process) -> None:
    try:
        process.terminate()
        process.wait(10)
    except psutil.TimeoutExpired:
        process.kill()
    except psutil.NoSuchProcess:
        pass
