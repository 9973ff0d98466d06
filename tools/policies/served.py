"""Replies and losses from vLLM's own server, one or several of them.

Rows are dealt by their hash, at most `IN_FLIGHT` at a time to each server. A server that fails is left out and named,
and its rows go to the others. One that is down is tried again at the next call, and waited for if no other is left. One
that answers wrongly (another base, an adapter that it does not apply) stays out.
"""

import hashlib
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from nslora.tools.errors import ModelError, StoppedError, UnfinishedError
from nslora.tools.inference.weights import Notify, fingerprint
from nslora.tools.policies.adapter_proof import EXACT_NATS, OTHER_BASE_NATS, Row, refuse_unproven
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
from nslora.tools.policy import Generated, OnProgress, Sampling, no_progress
from nslora.tools.schema import Dialogue
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings

T = TypeVar("T")

IN_FLIGHT = 64  # requests at a server at once
LOOK_S = 2.0  # between looks at servers that are waited for
PROBE = (("What is the capital of France?", "Paris is the capital of France."), ("Count to five.", "1, 2, 3, 4, 5"))


class ServedReplies:
    """Generates and scores on servers. `connect` comes first.

    Attributes:
        scores_alone: A loss depends on its own row alone.

    Args:
        engine: Addresses, and the longest time for one request, or for servers that are waited for.
        facts: The model's facts.
        lora: Settings of the adapters.
        adapters: The adapter store, on a disk that the servers share.
        notify: Called with a line for each server that is left out, or is back.
        pauses_s: Between the tries of one request.
    """

    scores_alone = True

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
        self.wrong: set[str] = set()  # those of them that are not tried again
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
        sampling: Sampling | None = None,
    ) -> Generated:
        """Generate replies, in order: greedy ones, or drawn by `sampling`.

        Raises:
            TooLongError: If a dialogue with its reply does not fit the context; a server would cut it without a word.
            UnfinishedError: If no server is left; it holds the replies that came.
        """
        rows = self.facts.prompts(dialogues, max_new_tokens)
        stops, penalty = self.facts.format.stop_ids, self.facts.repetition_penalty
        ids: dict[int, list[int]] = {}
        try:
            self._all(
                rows,
                adapter,
                lambda server, row: server.reply(row, adapter, max_new_tokens, stops, penalty, sampling),
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
            UnfinishedError: If no server is left; it holds the losses that came.
        """
        rows = self.facts.pairs(dialogues, references, spare=1)  # a server wants room for one token more
        losses: dict[int, float] = {}

        def ask(server: VllmServer, row: Row) -> float:
            return _loss(server.logprobs([*row[0], *row[1]], adapter), row)

        try:
            self._all(rows, adapter, ask, losses, no_progress)
        except StoppedError as error:
            raise UnfinishedError(str(error), sorted(losses), [losses[i] for i in sorted(losses)]) from error
        return [losses[i] for i in range(len(rows))]

    def _all(
        self,
        rows: Sequence[Any],
        adapter: str | None,
        ask: Callable[[VllmServer, Any], T],
        answers: dict[int, T],
        on_progress: OnProgress,
    ) -> None:
        """Ask about all rows at once; `answers` takes what comes, by the number of the row.

        Raises:
            StoppedError: If no server is left.
        """
        by: dict[int, VllmServer] = {}
        while missing := [number for number in range(len(rows)) if number not in answers]:
            for server in self.servers:
                self._back(server)

            def answer(number: int, cancelled: threading.Event) -> T:
                by[number], found = self._answer(rows[number], adapter, ask, cancelled)
                return found

            try:
                self._deal(missing, answer, answers, lambda: on_progress(len(answers), len(rows)))
            except StoppedError:
                self._drop_of_another_base(answers, by)
                raise
            self._drop_of_another_base(answers, by)

    def _deal(
        self,
        numbers: Sequence[int],
        answer: Callable[[int, threading.Event], T],
        answers: dict[int, T],
        on_answer: Callable[[], None],
    ) -> None:
        """Answer these rows in threads. If one finds no server, those under way are waited for."""
        cancelled, stopped = threading.Event(), cast(StoppedError | None, None)
        waiting: SimpleQueue[int] = SimpleQueue()
        came: SimpleQueue[tuple[int, T | None, BaseException | None]] = SimpleQueue()
        for number in numbers:
            waiting.put(number)

        def work() -> None:
            while (number := _next(waiting)) is not None:
                try:
                    came.put((number, answer(number, cancelled), None))
                except BaseException as error:  # the caller raises it
                    came.put((number, None, error))

        # Daemons, so that a request that hangs does not keep a process alive that is to end.
        for _ in range(min(len(numbers), IN_FLIGHT * len(self.servers))):
            threading.Thread(target=work, daemon=True).start()
        left = len(numbers)
        try:
            while left:
                number, found, error = came.get()
                left -= 1
                if error is None:
                    answers[number] = cast(T, found)
                    on_answer()
                    continue
                if not isinstance(error, StoppedError):
                    raise error
                stopped = stopped or error
                cancelled.set()
                left -= sum(1 for _ in iter(lambda: _next(waiting), None))
        finally:
            cancelled.set()
            while _next(waiting) is not None:
                pass
        if stopped is not None:
            raise stopped

    def _answer(
        self, row: Any, adapter: str | None, ask: Callable[[VllmServer, Any], T], cancelled: threading.Event
    ) -> tuple[VllmServer, T]:
        """Ask one server after the other about a row until one answers."""
        why = ""
        for _ in range(2 * len(self.servers) + 1):
            server = self._server_for(row, cancelled)
            restarts = server.restarts
            try:
                self._load(server, adapter)
                try:
                    return server, ask(server, row)
                except UnknownModelError:  # restarted
                    with server.loading:
                        if server.restarts == restarts:
                            self._refuse_other(server, server.facts())
                            self._refuse_other_base(server)
                    restarts = server.restarts
                    self._load(server, adapter)
                    return server, ask(server, row)
            except (ServerDownError, UnknownModelError) as error:
                why = str(error)
                self._leave_out(server, why, restarts)
            except ModelError as error:
                why = str(error)
                self._leave_out(server, why)
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
                if cancelled.is_set() or time.monotonic() > until or len(self.wrong) == len(self.servers):
                    raise StoppedError(
                        f"No server of engine.replies answers as it has to ({'; '.join(self._reasons())}): mend "
                        "or start one, then resume. Every answer that came is kept."
                    )
                if not any(self._back(server) for server in self.servers):
                    time.sleep(min(LOOK_S, self.timeout_s))

    def _reasons(self) -> list[str]:
        return [why.rstrip(".") for why in self.out.values()]

    def _leave_out(self, server: VllmServer, why: str, restarts: int | None = None) -> None:
        """Leave a server out: for good, or, with `restarts`, unless it was restarted since that was its number."""
        with self._changing:
            if restarts is None:
                new = server.url not in self.wrong
                self.wrong.add(server.url)
            else:
                new = server.url not in self.out and server.restarts == restarts
            if new:
                self._say_out(server, why)

    def _say_out(self, server: VllmServer, why: str) -> None:
        self.out[server.url] = why
        self.notify(f"note     left out: {why}")

    def _back(self, server: VllmServer) -> bool:
        """Put a server that was left out back, if it computes again and is the one that it was."""
        if server.url not in self.out:
            return True
        if server.url in self.wrong:
            return False
        try:
            with server.impatient():
                self._refuse_other(server, server.facts())
                self._refuse_other_base(server)
        except (ServerDownError, UnknownModelError):
            return False
        except ModelError as error:
            self.wrong.add(server.url)
            self._say_out(server, str(error))
            return False
        del self.out[server.url]
        self.notify(f"note     back: {server.url}")
        return True

    def _drop_of_another_base(self, answers: dict[int, T], by: dict[int, VllmServer]) -> None:
        """Drop the answers of a server that has another base by now: a restart shows nowhere if no request fails."""
        for server in {each.url: each for each in by.values()}.values():
            if server.url in self.wrong:
                continue
            try:
                with server.impatient():
                    self._refuse_other_base(server)
            except (ServerDownError, UnknownModelError):
                continue  # down, which is not wrong
            except ModelError as error:
                self._leave_out(server, str(error))
                for number in [number for number in answers if by[number] is server]:
                    del answers[number]

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
            # Runs of one model have one probe, and none may unload that of another.
            server.load(probe, name := f"{probe}-{uuid.uuid4().hex[:8]}")
            changed = _scorer(server)(self._probe_rows, name)
            server.unload(name)
        except ServerDownError as error:
            raise ModelError(
                f"The server {error} fails at a loss under an adapter: if it computes on a CPU, start it with "
                "--lora-target-modules that name no lm_head; else take a newer vLLM."
            ) from error
        except UnknownModelError as error:
            raise ModelError(
                f"{server.url} does not know an adapter that it has just loaded ({error}): if it stands for several "
                "servers, name each of them in engine.replies."
            ) from error
        if max(abs(a - b) for a, b in zip(base, changed, strict=True)) < EXACT_NATS:
            raise ModelError(f"{server.url} answers under an adapter as without it: look into its log.")
        self.probe_nats = self.probe_nats or base
        self._refuse_other_base(server, base)

    def _refuse_other_base(self, server: VllmServer, base: Sequence[float] = ()) -> None:
        """Raise ModelError if a server scores the probe otherwise than the first one did at the start."""
        base = base or _scorer(server)(self._probe_rows[:1], None)
        if max(abs(a - b) for a, b in zip(base, self.probe_nats, strict=False)) > OTHER_BASE_NATS:
            raise ModelError(
                f"{server.url} has another base than {self.servers[0].url} had at the start: start it with the run's "
                "model."
            )

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


def _next(waiting: "SimpleQueue[int]") -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _loss(logprobs: Sequence[float], row: Row) -> float:
    """Mean negative log-likelihood of the completion in (prompt ids, completion ids), nats per token."""
    scored = logprobs[len(row[0]) - 1 :]
    return -sum(scored) / len(scored)


def _scorer(server: VllmServer) -> Callable[[Sequence[Row], str | None], list[float]]:
    return lambda rows, adapter: [_loss(server.logprobs([*row[0], *row[1]], adapter), row) for row in rows]
