"""Tools that must not be repeated: their results are on record, and a call that was begun is never made again."""

from __future__ import annotations

import functools
import inspect
import json
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from threading import Lock
from typing import Any, TypeVar

from nslora.tools.errors import RunError
from nslora.tools.files import sha256_of_json
from nslora.tools.inference.reply_cache import ReplyCache

F = TypeVar("F", bound=Callable[..., Any])


class Record:
    """Results of one trajectory's calls, kept in the reply cache from the moment that they come.

    Args:
        cache: Of the run; None keeps nothing.
        trajectory: Names the trajectory.
    """

    def __init__(self, cache: ReplyCache | None, trajectory: str) -> None:
        self.cache, self.trajectory = cache, trajectory
        self._made: Counter[str] = Counter()
        self._lock = Lock()

    def begin(self, name: str, given: Any) -> tuple[str, Any]:
        """The key of a call, and its recorded result as [result], if there is one.

        Raises:
            RunError: If an earlier process began this call, and was killed before the result came.
        """
        call = sha256_of_json([self.trajectory, name, json.loads(json.dumps(given, default=str, sort_keys=True))])
        with self._lock:
            self._made[call] += 1
            key = f"{call}/{self._made[call]}"
        if self.cache is None:
            return key, None
        known = self.cache.find([f"begun/{key}", f"done/{key}"])
        if f"done/{key}" in known:
            return key, [json.loads(known[f"done/{key}"])]
        if known:
            raise RunError(
                f"The tool {name} was called with {given} by a process that ended before the result came, and it must "
                "not be repeated: find out what it did."
            )
        self.cache.add({f"begun/{key}": ""})
        return key, None

    def end(self, key: str, result: Any) -> None:
        """Keep the result of a call."""
        if self.cache is not None:
            self.cache.add({f"done/{key}": json.dumps(result)})


CURRENT: ContextVar[Record | None] = ContextVar("nslora_trajectory", default=None)


def once(tool: F) -> F:
    """Declare that a tool's function must not be repeated, as `@tool` above `@once` above the function.

    In a trajectory that was killed and goes on, a call that was made before gives its recorded result, which JSON must
    be able to hold. Outside of a run the function is called as it is.
    """

    def recorded(record: Record, args: Any, kwargs: Any) -> tuple[str, Any]:
        return record.begin(f"{tool.__module__}.{tool.__qualname__}", [args, kwargs])

    if inspect.iscoroutinefunction(tool):

        @functools.wraps(tool)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            if (record := CURRENT.get()) is None:
                return await tool(*args, **kwargs)
            key, known = recorded(record, args, kwargs)
            if known is None:
                known = [await tool(*args, **kwargs)]
                record.end(key, known[0])
            return known[0]

        return awaited  # type: ignore[return-value]

    @functools.wraps(tool)
    def called(*args: Any, **kwargs: Any) -> Any:
        if (record := CURRENT.get()) is None:
            return tool(*args, **kwargs)
        key, known = recorded(record, args, kwargs)
        if known is None:
            known = [tool(*args, **kwargs)]
            record.end(key, known[0])
        return known[0]

    return called  # type: ignore[return-value]
