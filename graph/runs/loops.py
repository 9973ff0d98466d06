"""Checkpointers and locks across an event loop: asynchronous ones asked by threads, synchronous ones awaited."""

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Self, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, DeltaChannelHistory

from nslora.tools.errors import RunError

T = TypeVar("T")
Saver = BaseCheckpointSaver[Any]
_THREADS = ThreadPoolExecutor(thread_name_prefix="nslora")


def is_asynchronous(saver: Saver) -> bool:
    """Whether a checkpointer belongs to an event loop: one of LangGraph's `aio` modules, or with no other methods."""
    return type(saver).__module__.endswith(".aio") or type(saver).get_tuple is BaseCheckpointSaver.get_tuple


class _Around(BaseCheckpointSaver[Any]):
    """Another checkpointer, by other methods."""

    def __init__(self, saver: Saver) -> None:
        super().__init__(serde=saver.serde)
        self.saver = saver

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self.saver.get_next_version(current, channel)

    def with_allowlist(self, extra_allowlist: Any) -> Self:
        return type(self)(self.saver.with_allowlist(extra_allowlist))


class FromThreads(_Around):
    """An asynchronous checkpointer, for code that runs in other threads than its event loop does.

    Every method raises RunError where it would wait for ever: in the loop itself, and if the loop does not run.
    """

    def __init__(self, saver: Saver) -> None:
        super().__init__(saver)
        self.loop: asyncio.AbstractEventLoop | None = getattr(saver, "loop", None) or running_loop()

    def attach(self) -> None:
        """Remember the loop that runs here, unless the checkpointer names its own."""
        self.loop = getattr(self.saver, "loop", None) or running_loop()

    def with_allowlist(self, extra_allowlist: Any) -> Self:
        clone = super().with_allowlist(extra_allowlist)
        clone.loop = self.loop
        return clone

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self.loop is None or not self.loop.is_running() or self.loop is running_loop():
            work.close()
            raise RunError(
                f"The checkpointer {type(self.saver).__name__} is asynchronous: in its event loop, await run.aadapt(), "
                "aresume(), astream(), aquestion() or astate(); for every other method, await "
                "asyncio.to_thread(run.METHOD, ...)."
            )
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._wait(self.saver.aget_tuple(config))

    def list(self, config: RunnableConfig | None, **options: Any) -> Iterator[CheckpointTuple]:
        async def listed() -> Sequence[CheckpointTuple]:
            return [each async for each in self.saver.alist(config, **options)]

        return iter(self._wait(listed()))

    def put(self, *given: Any) -> RunnableConfig:
        return self._wait(self.saver.aput(*given))

    def put_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, *more: str) -> None:
        self._wait(self.saver.aput_writes(config, writes, task_id, *more))

    def delete_thread(self, thread_id: str) -> None:
        self._wait(self.saver.adelete_thread(thread_id))

    def get_delta_channel_history(self, **asked: Any) -> Mapping[str, DeltaChannelHistory]:
        return self._wait(self.saver.aget_delta_channel_history(**asked))


class InThreads(_Around):
    """A synchronous checkpointer, for an event loop that must not wait for it."""

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await asyncio.to_thread(self.saver.get_tuple, config)

    async def alist(self, config: RunnableConfig | None, **options: Any) -> AsyncIterator[CheckpointTuple]:
        for each in await asyncio.to_thread(lambda: [*self.saver.list(config, **options)]):
            yield each

    async def aput(self, *given: Any) -> RunnableConfig:
        return await asyncio.to_thread(self.saver.put, *given)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await asyncio.to_thread(self.saver.put_writes, config, writes, task_id, task_path)

    async def aget_delta_channel_history(self, **asked: Any) -> Mapping[str, DeltaChannelHistory]:
        return await asyncio.to_thread(self.saver.get_delta_channel_history, **asked)


def awaitable(saver: Saver) -> Saver:
    """A run's checkpointer as its graph awaits it."""
    return saver.saver if isinstance(saver, FromThreads) else InThreads(saver)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def to_its_end(work: Awaitable[T], when_cancelled: Callable[[], None] = lambda: None) -> T:
    """Await work to its end. If that is cancelled meanwhile, the cancellation is raised at the end."""
    task, cancelled = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
            when_cancelled()
    if cancelled is None:
        return task.result()
    task.exception()  # asked for, so that nobody complains that it was not
    raise cancelled


async def in_thread(method: Callable[..., T], *given: Any) -> T:
    """Call a method in a worker thread, as `asyncio.to_thread` does.

    The loop's own threads stay free for what is awaited meanwhile: a checkpointer may need one.
    """
    call = functools.partial(contextvars.copy_context().run, method, *given)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)


@asynccontextmanager
async def in_threads(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a context manager in worker threads, for each to its end."""
    try:
        value = await to_its_end(entering := asyncio.ensure_future(in_thread(manager.__enter__)))
    except asyncio.CancelledError:
        if not entering.exception():
            await in_thread(manager.__exit__, None, None, None)
        raise
    try:
        yield value
    except BaseException as error:
        if not await to_its_end(in_thread(manager.__exit__, type(error), error, error.__traceback__)):
            raise
    else:
        await to_its_end(in_thread(manager.__exit__, None, None, None))
