"""Calls of a user's function: async ones are awaited, and passing failures of a server are tried again."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from nslora.tools.http_status import http_status

AT_ONCE = 16  # async calls that wait for an answer at the same time
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each further try
TRIES = 1 + len(WAITS_S)
LONGEST_WAIT_S = 60.0  # of what a server asks for in Retry-After

_PASSING_STATUS = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
# Bases, by name, of the connection errors of httpx, requests, aiohttp, openai and anthropic.
_PASSING_NAMES = {
    *("TransportError", "ConnectionError", "Timeout", "ClientConnectionError", "APIConnectionError"),
    *("ServiceUnavailable", "RateLimitError"),
}
_LOCK = threading.Lock()


def is_async(function: Any) -> bool:
    """Whether calls of this function, method or object are awaited."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def settled(call: Callable[[], Any]) -> Any:
    """Call, await what is awaitable, and try again after a passing failure; raise the last one."""
    for wait_s in (*WAITS_S, None):
        try:
            result = call()
            return awaited(result) if inspect.isawaitable(result) else result
        except Exception as error:
            if wait_s is None or not is_passing(error):
                raise
            time.sleep(min(max(wait_s, asked_to_wait(error)), LONGEST_WAIT_S))
    raise AssertionError("the last try returns or raises")


def is_passing(error: BaseException | None) -> bool:
    """Whether an error, or the one that it was raised from, says that the same call may succeed later.

    These are time-outs, lost connections, and the HTTP status 408, 425, 429 or 5xx.
    """
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            return all(map(is_passing, error.exceptions))
        status = http_status(error)
        if status is not None:
            return status in _PASSING_STATUS or 500 <= status < 600
        names = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, TimeoutError | ConnectionError | socket.gaierror) or names & _PASSING_NAMES:
            return True
        reason = getattr(error, "reason", None)  # of urllib's URLError
        error = reason if isinstance(reason, OSError) else error.__cause__
    return False


def asked_to_wait(error: BaseException) -> float:
    """Seconds that the server asks to wait, as a number or as a date; 0.0 if it says nothing that can be read."""
    for holder in (getattr(error, "response", None), error):
        asked: Any = getattr(getattr(holder, "headers", None), "get", lambda _: None)("retry-after")
        with suppress(TypeError, ValueError):
            return max(0.0, float(asked))
        with suppress(TypeError, ValueError):
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    return 0.0


def awaited(result: Awaitable[Any]) -> Any:
    """Wait for a result on the loop of this process: a client that was made in one loop works in no other.

    It sees the caller's context variables, and works inside a running loop too, which waits for it.
    """
    context = contextvars.copy_context()

    async def settle() -> tuple[Any, BaseException | None]:
        try:
            return await result, None
        except (Exception, SystemExit) as error:  # SystemExit would end the loop
            return None, error

    async def outcome() -> tuple[Any, BaseException | None]:
        return await asyncio.create_task(settle(), context=context)

    value, error = asyncio.run_coroutine_threadsafe(outcome(), _loop()).result()
    if error is not None:
        raise error
    return value


def _loop() -> asyncio.AbstractEventLoop:
    with _LOCK:
        return _loop_of(os.getpid())  # a forked process has no thread for its parent's loop


@functools.cache
def _loop_of(_process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="nslora-async", daemon=True).start()
    return loop
