"""Replies and losses from vLLM's own server, one or several of them.

Rows are dealt by their hash, at most `IN_FLIGHT` at a time to each server. A server that fails at every try is left out
and named, and its rows go to the others; at the next call it is tried again. If none is left, they are waited for.
"""

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from nslora.tools.errors import ModelError, StoppedError, UnfinishedError
from nslora.tools.inference.weights import Notify, fingerprint
from nslora.tools.policies.adapter_proof import EXACT_NATS, Row, refuse_unproven
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.probe_adapter import write_probe_adapter
from nslora.tools.policies.settings import EngineSettings
from nslora.tools.policies.vllm_server import (
    PAUSES_S,
    ServerDownError,
    ServerFacts,
    UnknownModelError,
    VllmServer,
)
from nslora.tools.policy import Generated, OnProgress, no_progress
from nslora.tools.schema import Dialogue
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings

T = TypeVar("T")

IN_FLIGHT = 64  # requests at a server at once
LOOK_S = 2.0  # between looks at servers that are waited for
PROBE = (("What is the capital of France?", "Paris is the capital of France."), ("Count to five.", "1, 2, 3, 4, 5"))


class ServedReplies:
    """Generates and scores on servers. `connect` comes first.

    Args:
        engine: Addresses, and the longest time for one request, or for servers that are waited for.
        facts: The model's facts.
        lora: Settings of the adapters.
        adapters: The adapter store, on a disk that the servers share.
        notify: Called with a line for each server that is left out, or is back.
        pauses_s: Between the tries of one request.
    """

    def __init__(
        self,
        engine: EngineSettings,
        facts: ModelFacts,
        lora: LoraSettings,
        adapters: AdapterStore,
        *,
        notify: Notify = lambda _: None,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ModelError("engine.replies needs the package httpx: pip install 'nslora[served]'.") from error
        key = os.environ.get("VLLM_API_KEY")
        urls = engine.replies if isinstance(engine.replies, tuple) else ()
        client = httpx.Client(
            timeout=httpx.Timeout(engine.timeout_s, connect=min(10.0, engine.timeout_s), pool=None),
            limits=httpx.Limits(max_connections=IN_FLIGHT * len(urls) + len(urls)),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        self.facts, self.lora, self.adapters, self.notify = facts, lora, adapters, notify
        self.timeout_s = engine.timeout_s
        self.servers = [VllmServer(url, client, adapters, pauses_s) for url in urls]
        self.out: dict[str, str] = {}  # why a server is left out, by its address
        self._changing = threading.Lock()
        asked = [[{"role": "user", "content": question}] for question, _ in PROBE]
        self._probe_rows: Sequence[Row] = facts.pairs(asked, [said for _, said in PROBE])
        self.told: ServerFacts | None = None
        self.probe_nats: list[float] = []

    def connect(self) -> "ServedReplies":
        """Check every server: its base, its context, and that it takes and applies an adapter of this run's shape.

        The facts then have the servers' context.

        Raises:
            ModelError: If a server is unusable.
            StoppedError: If one cannot be reached.
        """
        with tempfile.TemporaryDirectory(dir=_made(self.adapters.folder), prefix=".probe-") as scratch:
            probe = write_probe_adapter(self.facts, self.lora, self.adapters, Path(scratch) / "probe")
        try:
            for server in self.servers:
                try:
                    self._check(server, probe)
                except ServerDownError as error:
                    raise StoppedError(
                        f"The server {error} cannot be used: start it, or correct engine.replies."
                    ) from error
        finally:
            shutil.rmtree(self.adapters.folder / probe, ignore_errors=True)
        context = min(self.facts.context_tokens, self.told.context_tokens if self.told else 0)
        self.facts = replace(self.facts, context_tokens=context)
        return self

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        """Generate greedy replies, in order.

        Raises:
            TooLongError: If a dialogue with its reply does not fit the context; a server would cut it without a word.
            ModelError: If a server refuses an adapter or a request.
            UnfinishedError: If no server is left; it holds the replies that came.
        """
        rows = self.facts.prompts(dialogues, max_new_tokens)
        stops, penalty = self.facts.format.stop_ids, self.facts.repetition_penalty
        ids: dict[int, list[int]] = {}
        try:
            self._all(
                rows,
                adapter,
                lambda server, row: server.reply(row, adapter, max_new_tokens, stops, penalty),
                ids,
                on_progress,
            )
        except StoppedError as error:
            raise UnfinishedError(str(error), sorted(ids), self._generated(ids)) from error
        return self._generated(ids)

    def _generated(self, ids: dict[int, list[int]]) -> Generated:
        """The replies that came, in the order of their rows."""
        came = [ids[i] for i in sorted(ids)]
        written = self.facts.format
        return Generated(
            tuple(written.decode(row) for row in came),
            sum(len(row) for row in came),
            frozenset(i for i, row in enumerate(came) if not written.ended(row)),
        )

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        """Return the mean negative log-likelihood of each reference with its end of turn, nats per token.

        Raises:
            ModelError: If a server refuses an adapter or a request.
            StoppedError: If no server is left.
        """
        rows = self.facts.pairs(dialogues, references, spare=1)  # a server wants room for one token more
        losses: dict[int, float] = {}

        def ask(server: VllmServer, row: Row) -> float:
            return _loss(server.logprobs([*row[0], *row[1]], adapter), row)

        self._all(rows, adapter, ask, losses, no_progress)
        return [losses[i] for i in range(len(rows))]

    def _all(
        self,
        rows: Sequence[Any],
        adapter: str | None,
        ask: Callable[[VllmServer, Any], T],
        answers: dict[int, T],
        on_progress: OnProgress,
    ) -> None:
        """Ask about all rows at once; `answers` takes what comes, by the number of the row."""
        for server in self.servers:
            self._back(server)
        cancelled = threading.Event()
        waiting: SimpleQueue[int] = SimpleQueue()
        came: SimpleQueue[tuple[int, T | None, BaseException | None]] = SimpleQueue()
        for number in range(len(rows)):
            waiting.put(number)

        def work() -> None:
            while not cancelled.is_set():
                try:
                    number = waiting.get_nowait()
                except Empty:
                    return
                try:
                    came.put((number, self._answer(rows[number], adapter, ask, cancelled), None))
                except BaseException as error:  # the caller raises it
                    came.put((number, None, error))

        # Daemons, so that a request that hangs does not keep a process alive that is to end.
        for _ in range(min(len(rows), IN_FLIGHT * len(self.servers))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for done in range(1, len(rows) + 1):
                number, answer, error = came.get()
                if error is not None:
                    raise error
                answers[number] = cast(T, answer)
                on_progress(done, len(rows))
        finally:
            cancelled.set()
            while not came.empty():
                number, answer, error = came.get()
                if error is None:
                    answers[number] = cast(T, answer)

    def _answer(
        self, row: Any, adapter: str | None, ask: Callable[[VllmServer, Any], T], cancelled: threading.Event
    ) -> T:
        """Ask one server after the other about a row until one answers."""
        why = ""
        for _ in range(2 * len(self.servers) + 1):
            server = self._server_for(row, cancelled)
            restarts = server.restarts
            try:
                self._load(server, adapter)
                try:
                    return ask(server, row)
                except UnknownModelError:  # restarted
                    with server.loading:
                        server.restarted(restarts)
                    restarts = server.restarts
                    self._load(server, adapter)
                    return ask(server, row)
            except (ServerDownError, UnknownModelError) as error:
                why = str(error)
                self._leave_out(server, why, restarts)
        raise StoppedError(
            f"One request fails wherever it is asked ({why}), though the servers of engine.replies answer others: look "
            "into their logs, then resume."
        )

    def _server_for(self, row: Any, cancelled: threading.Event) -> VllmServer:
        """The server that a row is dealt to, of those that are not left out. Waits if there is none."""
        while True:
            live = [server for server in self.servers if server.url not in self.out]
            if live:
                return live[int(hashlib.sha256(repr(row).encode()).hexdigest(), 16) % len(live)]
            self._wait(cancelled)

    def _wait(self, cancelled: threading.Event) -> None:
        """Wait until a server is back. Raises StoppedError after the longest time for a request."""
        with self._changing:
            until = time.monotonic() + self.timeout_s
            while len(self.out) == len(self.servers):
                if any(self._back(server) for server in self.servers):
                    return
                if time.monotonic() > until or cancelled.is_set():
                    raise StoppedError(
                        f"No server of engine.replies answers ({'; '.join(self.out.values())}): start one again, then "
                        "resume. Every reply that came is kept."
                    )
                time.sleep(min(LOOK_S, self.timeout_s))

    def _leave_out(self, server: VllmServer, why: str, restarts: int) -> None:
        """Leave a server out, unless it was restarted since `restarts` was its number."""
        with self._changing:
            if server.url not in self.out and server.restarts == restarts:
                self.out[server.url] = why
                self.notify(f"note     left out: {why}")

    def _back(self, server: VllmServer) -> bool:
        """Put a server that was left out back, if it computes again and is the one that it was."""
        if server.url not in self.out:
            return True
        pauses, server.pauses_s = server.pauses_s, ()
        try:
            self._refuse_other(server, server.facts())
            _scorer(server)(self._probe_rows[:1], None)
        except ServerDownError:
            return False
        finally:
            server.pauses_s = pauses
        del self.out[server.url]
        self.notify(f"note     back: {server.url}")
        return True

    def _load(self, server: VllmServer, adapter: str | None) -> None:
        """Load an adapter on a server, and have it prove that it applies it, before the first row."""
        if adapter is None:
            return
        with server.loading:
            if not server.load(adapter):
                return
            try:
                score = _scorer(server)
                refuse_unproven(self.adapters, adapter, score, self._probe_rows, server.url)
            except BaseException:
                server.forget(adapter)
                raise

    def _check(self, server: VllmServer, probe: str) -> None:
        """Check one server, see `connect`."""
        self._refuse_other(server, server.facts())
        base = _scorer(server)(self._probe_rows, None)
        try:
            server.load(probe)
            changed = _scorer(server)(self._probe_rows, probe)
            server.unload(probe)
        except ServerDownError as error:
            raise ModelError(
                f"The server {error} fails at a loss under an adapter: if it computes on a CPU, start it with "
                "--lora-target-modules that name no lm_head; else take a newer vLLM."
            ) from error
        if max(abs(a - b) for a, b in zip(base, changed, strict=True)) < EXACT_NATS:
            raise ModelError(f"{server.url} answers under an adapter as without it: look into its log.")
        if self.probe_nats and max(abs(a - b) for a, b in zip(base, self.probe_nats, strict=True)) > 0.1:
            raise ModelError(
                f"{server.url} has another base than {self.servers[0].url}: start both with the run's model."
            )
        self.probe_nats = self.probe_nats or base

    def _refuse_other(self, server: VllmServer, found: ServerFacts) -> None:
        """Raise ModelError if a server has another model, or another version or context than the first one."""
        source = self.facts.source
        if os.path.isdir(found.root) and os.path.isdir(source.location):
            same = Path(found.root).samefile(source.location) or (
                fingerprint(found.root, None) == fingerprint(source.location, None)
            )
        else:  # a folder that cannot be seen from here, or a hub id
            same = found.root.startswith("/") or found.root == source.name
        if not same:
            raise ModelError(
                f"{server.url} serves {found.root}, but the run's model is {source.name}: start it with that."
            )
        known = self.told = self.told or found
        if (found.version, found.context_tokens) != (known.version, known.context_tokens):
            raise ModelError(
                f"{server.url} is vLLM {found.version} with a context of {found.context_tokens} tokens, another one of "
                f"engine.replies is {known.version} with {known.context_tokens}: make them alike."
            )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _loss(logprobs: Sequence[float], row: Row) -> float:
    """Mean negative log-likelihood of the completion in (prompt ids, completion ids), nats per token."""
    scored = logprobs[len(row[0]) - 1 :]
    return -sum(scored) / len(scored)


def _scorer(server: VllmServer) -> Callable[[Sequence[Row], str | None], list[float]]:
    return lambda rows, adapter: [_loss(server.logprobs([*row[0], *row[1]], adapter), row) for row in rows]
