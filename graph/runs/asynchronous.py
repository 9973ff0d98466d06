"""The execution of a run in an event loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.runtime import RunControl
from langgraph.types import StreamMode

from nslora.graph.runs.execution import Answer, Execution, modes_of
from nslora.graph.runs.loops import FromThreads, awaitable, in_thread, in_threads, to_its_end
from nslora.graph.state import AdaptationState
from nslora.graph.tracking.following import trackers_of

T = TypeVar("T")


class AsyncExecution(Execution):
    """An execution that can be awaited: its nodes, its lock and its checkpoints work in threads."""

    async def astream(
        self,
        modes: StreamMode | Sequence[StreamMode] = ("updates", "custom"),
        *,
        control: RunControl | None = None,
        answer: Answer | None = None,
        config: RunnableConfig | None = None,
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Run to the end, as `stream` does, without keeping the event loop waiting.

        Nodes of your own may be `async def` here. If the task is cancelled, or the iterator closed, the run stops as it
        does after the first Ctrl-C, and only then is the cancellation raised and the lock given back.
        """
        control, wanted = control or RunControl(), modes_of(modes)
        if isinstance(self.saver, FromThreads):
            self.saver.attach()
        if self.workspace.settings.track:  # imports packages; made here, they see what the host has open
            await self._apart(trackers_of, self.workspace)
        trackers = trackers_of(self.workspace)
        async with in_threads(self._begun(answer, config, trackers)) as begun:
            if begun is None:
                return
            graph = begun.graph.copy({"checkpointer": awaitable(begun.saver)})
            parts: Any = graph.astream(**begun.streamed(wanted, control))

            def stop() -> None:
                control.request_drain("cancelled")

            try:
                while (part := await to_its_end(anext(parts, None), stop)) is not None:
                    await to_its_end(in_thread(begun.look_again), stop)
                    begun.follow.saw(str(part[0]), part[1])
                    if part[0] in wanted:
                        yield str(part[0]), part[1]
            except (asyncio.CancelledError, GeneratorExit):
                # A thread cannot be cancelled: the node goes on to the next place where it saves its work. Whatever
                # it fails with then, it will fail with again.
                stop()
                with suppress(Exception):
                    while await to_its_end(anext(parts, None), stop) is not None:
                        pass
                raise

    async def afinish(self, answer: Answer | None = None, **options: Any) -> dict[str, Any]:
        """Run to the end and return the report, as `finish` does."""
        async with aclosing(self.astream(answer=answer, **options)) as parts:
            async for _ in parts:
                pass
        return await self._apart(self.ended)

    async def aquestion(self) -> Any:
        """What a person is asked, as `question` says it."""
        return await self._apart(self.question)

    async def astate(self) -> AdaptationState | None:
        """The newest state, as `state` gives it."""
        return await self._apart(self.state)

    async def _apart(self, method: Callable[..., T], *given: Any) -> T:
        """Call a method in a worker thread, from where it can ask an asynchronous checkpointer too."""
        if isinstance(self.saver, FromThreads):
            self.saver.attach()
        return await in_thread(method, *given)
