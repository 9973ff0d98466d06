"""Serves any LangChain chat model over HTTP in OpenAI's format, on 127.0.0.1, for tests.

    with serve_chat(RuleEditor()) as server:
        editor = Editor(connect_editor("any-name", base_url=server.base_url))

It answers chat completions, whole or as a stream, and nothing else. A message's `finish_reason`, `refusal` and usage
are sent; without text, `content` is null. Faults of real servers can be scripted:
`serve_chat(ScriptedChat(["a critique", ServerFaultError(429), ...]))`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

MESSAGES: Mapping[str, type[BaseMessage]] = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


class ServerFaultError(Exception):
    """A fault for the server to show instead of an answer; the chat model that is served raises it.

    Args:
        status: HTTP status of an error in OpenAI's format.
        message: Message of that error.
        headers: Headers of that error.
        hangs: Send nothing until the server is closed.
        cut_off: Send half of a right answer, then close the connection.
        page: Send this HTML instead of JSON.
        code: The error's code, as in "insufficient_quota".
    """

    def __init__(
        self,
        status: int = 500,
        message: str = "scripted fault",
        *,
        headers: Mapping[str, str] | None = None,
        hangs: bool = False,
        cut_off: bool = False,
        page: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status, self.headers = status, dict(headers or {})
        self.hangs, self.cut_off, self.page = hangs, cut_off, page


@dataclass(frozen=True)
class ChatServer:
    """A running server. requests: headers and body of each request so far."""

    base_url: str
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)


@contextmanager
def serve_chat(chat: BaseChatModel) -> Iterator[ChatServer]:
    """Serve a chat model on a free port, from a thread of this process, until the block ends."""
    closing = threading.Event()
    requests: list[tuple[dict[str, str], dict[str, Any]]] = []

    class Handler(_Handler):
        served, seen, end = chat, requests, closing

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1", requests)
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # With the default of 5, connections are reset when more threads than that connect at once.
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    served: BaseChatModel
    seen: list[tuple[dict[str, str], dict[str, Any]]]
    end: threading.Event

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((dict(self.headers), body))
        try:
            messages = [MESSAGES[each["role"]](each["content"]) for each in body["messages"]]
            whole = completion(self.served.invoke(messages), body.get("model", ""))
            if body.get("stream"):
                counts = (body.get("stream_options") or {}).get("include_usage", False)
                self._send(200, b"".join(chunks(whole, counts=counts)), kind="text/event-stream")
            else:
                self._send(200, json.dumps(whole).encode())
        except ServerFaultError as fault:
            self._fail(fault, body)
        except Exception as error:  # a served model that fails is a server that fails
            self._fail(ServerFaultError(500, f"{type(error).__name__}: {error}"), body)

    def _fail(self, fault: ServerFaultError, body: dict[str, Any]) -> None:
        if fault.hangs:
            self.end.wait()
        elif fault.cut_off:
            whole = json.dumps(completion(AIMessage(str(fault)), body.get("model", ""))).encode()
            self._send(200, whole[: len(whole) // 2], length=len(whole))
        elif fault.page is not None:
            self._send(200, fault.page.encode(), kind="text/html")
        else:
            error = {"message": str(fault), "type": "scripted", "param": None, "code": fault.code}
            self._send(fault.status, json.dumps({"error": error}).encode(), headers=fault.headers)

    def _send(
        self,
        status: int,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
        kind: str = "application/json",
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": kind, "Connection": "close"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def completion(message: BaseMessage, model: str) -> dict[str, Any]:
    """Convert a reply to OpenAI's `chat.completion` object; it has `usage` only if the model counted tokens."""
    reason = message.response_metadata.get("finish_reason", "stop")
    refusal = message.additional_kwargs.get("refusal")
    said = {"role": "assistant", "content": str(message.text) or None, "refusal": refusal}
    choice = {"index": 0, "message": said, "finish_reason": reason}
    answer: dict[str, Any] = {
        "id": "chatcmpl-local",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
    }
    usage = getattr(message, "usage_metadata", None)
    if usage:
        counted = {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"]}
        answer["usage"] = {**counted, "total_tokens": usage["total_tokens"]}
        if reasoning := usage.get("output_token_details", {}).get("reasoning"):
            answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return answer


def chunks(whole: Mapping[str, Any], *, counts: bool) -> Iterator[bytes]:
    """Cut a completion into the events of a stream; the counts are sent only to who asks for them."""
    choice = whole["choices"][0]
    said, base = choice["message"], {**whole, "object": "chat.completion.chunk"}
    usage = base.pop("usage", None)
    text = said["content"] or ""
    deltas = [{"role": "assistant", "refusal": said["refusal"]}]
    deltas += [{"content": text[start : start + 40]} for start in range(0, len(text), 40)]
    events: list[dict[str, Any]] = [
        *({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas),
        {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
        *([{**base, "choices": [], "usage": usage}] if counts and usage else []),
    ]
    for event in events:
        yield f"data: {json.dumps(event)}\n\n".encode()
    yield b"data: [DONE]\n\n"
