"""A proxy between a run and a server on 127.0.0.1 that plays the faults of real servers, for tests.

    with between(server.url) as proxy:
        proxy.play(cut_off, on="reply", times=3)   # the next three replies break off

It passes on whole requests and whole answers, and remembers which completions the client got as the server gave them.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

ALWAYS = 1_000_000


@dataclass(frozen=True)
class Request:
    """What a client asks for. kind: "models", "load", "unload", "reply" or "loss"."""

    head: bytes
    data: bytes
    kind: str
    body: dict[str, Any]


@dataclass
class Answer:
    """What is sent, and how. sent: share of the bytes after which the connection is cut."""

    status: int
    data: bytes
    sent: float = 1.0


Server = Callable[[], Awaitable[Answer]]
Play = Callable[["ChaosProxy", Server], Awaitable[Answer | None]]  # None: the connection is cut before an answer


def says(status: int, message: str) -> Play:
    """An error of the server, or of what stands before it."""

    async def play(proxy: "ChaosProxy", server: Server) -> Answer:
        return Answer(status, json.dumps({"error": {"message": message, "code": status}}).encode())

    return play


def sends(text: str) -> Play:
    """Another body with status 200."""

    async def play(proxy: "ChaosProxy", server: Server) -> Answer:
        return Answer(200, text.encode())

    return play


async def cut_off(proxy: "ChaosProxy", server: Server) -> Answer:
    """Half of an answer."""
    return Answer(200, (await server()).data, sent=0.5)


async def silent(proxy: "ChaosProxy", server: Server) -> None:
    """No answer for longer than a client waits."""
    await server()
    await asyncio.sleep(60)


def slow(seconds: float) -> Play:
    """A whole answer, later."""

    async def play(proxy: "ChaosProxy", server: Server) -> Answer:
        await asyncio.sleep(seconds)
        return await server()

    return play


async def dies(proxy: "ChaosProxy", server: Server) -> None:
    """The server ends with everything that it had under way, and refuses connections from then on."""
    proxy.close()


def changes(change: Callable[[dict[str, Any]], Any]) -> Play:
    """A completion that is changed in place; what `change` returns in its place, if it returns something."""

    async def play(proxy: "ChaosProxy", server: Server) -> Answer:
        answer = await server()
        body = json.loads(answer.data)
        if "choices" in body:
            body = change(body["choices"][0]) or body
        return Answer(answer.status, json.dumps(body).encode())

    return play


@dataclass
class ChaosProxy:
    """A running proxy.

    Attributes:
        upstream: Address of the server.
        url: Its own address, which stays the same after `close` and `open`.
        answered: Completions that came whole and unchanged, by kind, adapter, prompt and answer.
        asked: Requests by kind.
        moved_bytes: Bodies of requests and answers.
    """

    upstream: str
    url: str = ""
    answered: Counter[tuple[str, str, tuple[int, ...], str]] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    moved_bytes: int = 0
    faults: list[tuple[Play, str, Callable[[Request], bool], list[int]]] = field(default_factory=list)
    loop: Any = None
    listening: Any = None
    open_connections: set[asyncio.StreamWriter] = field(default_factory=set)

    def play(
        self, play: Play, *, on: str = "reply", times: int = ALWAYS, if_: Callable[[Request], bool] = lambda _: True
    ) -> None:
        """Play a fault at the next requests of a kind."""
        self.faults.append((play, on, if_, [times]))

    def mend(self) -> None:
        """Play nothing any more."""
        self.faults.clear()
        if self.listening is None:
            asyncio.run_coroutine_threadsafe(self.start(), self.loop).result()

    def close(self) -> None:
        """Refuse connections, and cut those that are open. Called in the proxy's thread."""
        self.listening, closing = None, self.listening
        for writer in self.open_connections:
            writer.transport.abort()
        if closing is not None:
            closing.close()

    async def end(self) -> None:
        """Close for good."""
        self.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def start(self) -> None:
        """Listen, at the same address as before."""
        port = urlsplit(self.url).port or 0
        self.listening = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=256)
        self.url = f"http://127.0.0.1:{self.listening.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections.add(writer)
        try:
            while (request := await _request(reader)) is not None:
                answer = await self._answer(request)
                if answer is None:
                    break
                head = f"HTTP/1.1 {answer.status} X\r\nContent-Type: text/plain\r\nContent-Length: {len(answer.data)}"
                writer.write(head.encode() + b"\r\n\r\n" + answer.data[: int(answer.sent * len(answer.data))])
                await writer.drain()
                if answer.sent < 1:
                    break
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.open_connections.discard(writer)
            writer.close()

    async def _answer(self, request: Request) -> Answer | None:
        self.asked[request.kind] += 1
        for play, kind, wanted, left in self.faults:
            if left[0] > 0 and kind == request.kind and wanted(request):
                left[0] -= 1
                return await play(self, lambda: self._passed_on(request))
        answer = await self._passed_on(request)
        self.moved_bytes += len(request.data) + len(answer.data)
        if answer.status == 200 and "prompt" in request.body:
            self.answered[_key(request, answer)] += 1
        return answer

    async def _passed_on(self, request: Request) -> Answer:
        place = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(request.head + b"\r\nConnection: close\r\n\r\n" + request.data)
        answer = await reader.read()
        writer.close()
        head, _, data = answer.partition(b"\r\n\r\n")
        return Answer(int(head.split(b" ", 2)[1]), data)


def _key(request: Request, answer: Answer) -> tuple[str, str, tuple[int, ...], str]:
    return request.kind, request.body["model"], tuple(request.body["prompt"]), answer.data.decode()


async def _request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection; None if it ends."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        length = next((int(each[15:]) for each in lines if each.lower().startswith(b"content-length:")), 0)
        data = await reader.readexactly(length)
        kept = [each for each in lines if not each.lower().startswith(b"connection:")]
        body = json.loads(data) if data else {}
        path = line.split(b" ")[1].decode()
        kind = {"/v1/load_lora_adapter": "load", "/v1/unload_lora_adapter": "unload"}.get(path, "models")
        if path == "/v1/completions":
            kind = "reply" if body.get("prompt_logprobs") is None else "loss"
        return Request(b"\r\n".join([line, *kept]), data, kind, body)
    return None


@contextmanager
def between(upstream: str) -> Iterator[ChaosProxy]:
    """Stand between clients and a server until the block ends."""
    proxy = ChaosProxy(upstream, loop=asyncio.new_event_loop())
    thread = threading.Thread(target=proxy.loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(proxy.start(), proxy.loop).result()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.end(), proxy.loop).result()
        proxy.loop.call_soon_threadsafe(proxy.loop.stop)
        thread.join()
        proxy.loop.close()
