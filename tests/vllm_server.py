"""Serves a local policy over vLLM's routes on 127.0.0.1, with the faults of real servers, for tests.

    with serve_vllm(policy) as server:
        server.fault = {"cut_off": 3}   # the next three completions break off

It answers /v1/models, /version, /v1/load_lora_adapter, /v1/unload_lora_adapter and /v1/completions (token ids in, token
ids out, prompt_logprobs), and nothing else.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nslora.tools.inference.generation import generate_ids
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.training.adapters import AdapterStore

COMPUTING = threading.Lock()


@dataclass
class FakeVllm:
    """A running server.

    Attributes:
        policy: Computes the answers.
        model: Name of the base.
        root: Where the server says that the base came from.
        version: Of vLLM, as it says.
        context: Its --max-model-len.
        max_rank: Its --max-lora-rank.
        fault: Name of a fault, and how many completions show it.
        lives: So many completions are answered, and then none; None: all are.
        answered: Completed prompts with their adapter, in the order of their answers.
        loads: Adapters in the order in which they were loaded.
    """

    policy: LocalPolicy
    model: str = "base"
    root: str = ""
    version: str = "0.32.0"
    context: int = 2048
    max_rank: int = 8
    runtime_lora: bool = True
    applies: bool = True
    fault: Counter[str] = field(default_factory=Counter)
    answered: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    lives: int | None = None
    loaded: dict[str, str] = field(default_factory=dict)
    url: str = ""
    server: Any = None

    def restart(self) -> None:
        """Forget the adapters, as a server that was killed and started again."""
        self.loaded.clear()

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids, name = [int(i) for i in body["prompt"]], body["model"]
        if name != self.model and name not in self.loaded:
            return error(404, f"The model `{name}` does not exist.")
        room = self.context - len(ids)
        if room < 1:
            return error(400, f"This model's maximum context length is {self.context} tokens.")
        adapter = None if name == self.model or not self.applies else name
        with COMPUTING:  # a model in memory has one active adapter
            if self.lives == 0:
                return error(500, "EngineCore encountered an issue.")
            self.lives = None if self.lives is None else self.lives - 1
            choice = self._choice(ids, adapter, {**body, "max_tokens": min(room, body["max_tokens"])})
            self.answered.append((tuple(ids), name))
        return 200, {"choices": [choice]}

    def _choice(self, ids: list[int], adapter: str | None, body: dict[str, Any]) -> dict[str, Any]:
        import torch

        pad, folder = self.policy.format.pad_id, Path(self.loaded.get(adapter or "", ""))
        self.policy.peft.store = AdapterStore(folder.parent)
        with self.policy.using(folder.name if adapter else None) as model:
            wanted: dict[str, Any] = {"max_new_tokens": body["max_tokens"], "stop_ids": body["stop_token_ids"] or [pad]}
            plain: dict[str, Any] = {"pad_id": pad, "on_progress": lambda *_: None, "shared": 0, "pads": True}
            reply = generate_ids(model, [ids], batch_size=1, **wanted, **plain)[0]
            choice: dict[str, Any] = {"token_ids": reply, "prompt_token_ids": ids}
            if body.get("prompt_logprobs") is not None:
                with torch.inference_mode():
                    scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                told = [{str(i): {"logprob": float(scores[at, i])}} for at, i in enumerate(ids[1:])]
                choice["prompt_logprobs"] = [None, *told]
        return choice

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.loaded:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {folder}")
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            return error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}.")
        if self.fault["damaged"]:
            return error(500, "Error while deserializing header: header too small")
        self.loaded[name] = str(folder)
        self.loads.append(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."


def error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "code": status}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeVllm

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        fake = self.fake
        if self.path == "/version":
            self._send(200, {"version": fake.version})
            return
        base = {"id": fake.model, "root": fake.root, "max_model_len": fake.context, "parent": None}
        self._send(200, {"data": [base, *({"id": name, "parent": fake.model} for name in fake.loaded)]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake = self.fake
        if self.path == "/v1/completions":
            self._complete(body)
        elif not fake.runtime_lora:
            self._send(404, {"detail": "Not Found"})
        elif self.path == "/v1/load_lora_adapter":
            self._send(*fake.load(body))
        else:
            known = fake.loaded.pop(body["lora_name"], None)
            self._send(*((200, "ok") if known else error(404, "cannot be found")))

    def _complete(self, body: dict[str, Any]) -> None:
        fake = self.fake
        shown = next((name for name, left in fake.fault.items() if left > 0 and name != "damaged"), None)
        if shown == "lora_loss" and not (body["model"] != fake.model and body.get("prompt_logprobs") is not None):
            shown = None
        if shown:
            fake.fault[shown] -= 1
        if shown in ("500", "lora_loss"):
            self._send(*error(500, "EngineCore encountered an issue."))
        elif shown == "silent":
            time.sleep(1.5)
            self.close_connection = True
        elif shown == "garbage":
            self._send(200, "<html>")
        elif shown == "dies":
            fake.server.shutdown_soon()
            self.close_connection = True
        else:
            if shown == "restarted":
                fake.restart()
            status, answer = fake.complete({"stop_token_ids": [], **body})
            if shown == "shortened":
                answer["choices"][0]["token_ids"] = answer["choices"][0]["token_ids"][:1]
            if shown == "other_prompt":
                answer["choices"][0]["prompt_token_ids"] = body["prompt"][1:]
            self._send(status, answer, half=shown == "cut_off")

    def _send(self, status: int, answer: Any, *, half: bool = False) -> None:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.wfile.flush()
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def shutdown_soon(self) -> None:
        """Close the socket, so that every later connection is refused."""
        self.socket.close()


@contextmanager
def serve_vllm(
    policy: LocalPolicy, *, port: int = 0, kind: type[FakeVllm] = FakeVllm, **options: Any
) -> Iterator[FakeVllm]:
    """Serve a policy until the block ends."""
    fake = kind(policy, root=policy.facts.source.location, **options)
    handler = type("Handler", (_Handler,), {"fake": fake})
    fake.server = _Server(("127.0.0.1", port), handler)
    fake.url = f"http://127.0.0.1:{fake.server.server_address[1]}"
    threading.Thread(target=fake.server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
