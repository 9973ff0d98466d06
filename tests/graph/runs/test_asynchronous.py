"""Runs in an event loop: awaited, streamed, cancelled, with checkpointers of both kinds."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import ObedientPolicy
from langchain_core.callbacks import BaseCallbackHandler
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.runtime import RunControl
from scripted_runs import BULLETS, ONCE, TWICE, begun, edits, results

from nslora.graph.build import build_workflow
from nslora.graph.lock import is_locked
from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError, SettingsError
from nslora.tools.policy import Generated, OnProgress, no_progress
from nslora.tools.schema import Dialogue
from nslora.tools.tasks.task import Task


class OnlyAwaited(BaseCheckpointSaver[Any]):
    """A checkpointer without a synchronous method, which needs a thread of its loop's; it notes where it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.threads = InMemorySaver(), set[str]()

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self.kept.get_next_version(current, channel)

    async def aget_tuple(self, config: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        return await asyncio.to_thread(self.kept.get_tuple, config)

    async def alist(self, config: Any, **options: Any) -> AsyncIterator[Any]:
        for each in self.kept.list(config, **options):
            yield each

    async def aput(self, *given: Any) -> Any:
        return self.kept.put(*given)

    async def aput_writes(self, *given: Any) -> None:
        self.kept.put_writes(*given)

    async def adelete_thread(self, thread_id: str) -> None:
        self.kept.delete_thread(thread_id)


@asynccontextmanager
async def in_the_folder(tmp_path: Path) -> AsyncIterator[None]:
    yield None


@asynccontextmanager
async def asynchronous(tmp_path: Path) -> AsyncIterator[Any]:
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "own.sqlite")) as saver:
        yield saver


@asynccontextmanager
async def only_awaited(tmp_path: Path) -> AsyncIterator[Any]:
    saver = OnlyAwaited()
    yield saver
    assert saver.threads == {threading.main_thread().name}


@pytest.mark.parametrize("opened", [in_the_folder, asynchronous, only_awaited])
def test_a_run_is_awaited_asks_and_goes_on_with_checkpointers_of_both_kinds(
    opened: Callable[[Path], Any], tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_by = []
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *a, **k: (opened_by.append(threading.current_thread()), connect(*a, **k))[1]
    )

    async def life() -> Run:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))  # is never kept waiting for what needs it
        async with opened(tmp_path) as saver:
            opened_by.clear()
            editor, policy = edits(ONCE, TWICE), ObedientPolicy()
            run = begun(tmp_path, task, editor, model=policy, max_rounds=2, approve="edits", checkpoints=saver)
            async with aclosing(run.astream(("updates",))) as parts:
                assert [next(iter(part)) async for _, part in parts][-1] == "__interrupt__"
            assert (await run.aquestion())["kind"] == "textgrad"
            with pytest.raises(RunError, match="waits for a person"):
                await run.aresume("accept")
            run = Run.open(run.folder, task=task, editor=editor, model=policy, checkpoints=saver)
            assert [each.action for each in (await run.aresume("reject")).rounds] == ["textgrad", "textgrad"]
            assert [each.kept for each in (await run.aadapt()).rounds] == [False, False]
            state = await run.astate()
            assert state is not None
            assert state["status"] == "finished"
            loop.set_default_executor(ThreadPoolExecutor(2))  # of which to_thread keeps one
            assert len(await asyncio.to_thread(run.history)) > 10
            if opened is not only_awaited:
                return run
            other = await asyncio.to_thread(run.fork, at=2)
            with pytest.raises(RunError, match="waits for a person"):
                await other.aadapt()
            assert (await other.aresume("accept")).rounds[1].reward_after is not None
            assert (await asyncio.to_thread(run.replay)).same
            for call in (run.adapt, run.question, run.state, run.history):
                with pytest.raises(RunError, match=r"is asynchronous: in its event loop, await run.aadapt\(\)"):
                    call()
        return run

    run = asyncio.run(life())
    assert threading.main_thread() not in opened_by
    if opened is not in_the_folder:
        with pytest.raises(RunError, match="is asynchronous"):  # its loop is over: no wait for ever
            run.state()


def test_a_run_that_is_not_awaited_works_in_a_loop_as_a_graph_does(tmp_path: Path, task: Task) -> None:
    async def notebook() -> None:
        begun(tmp_path, task, edits(BULLETS), max_rounds=1).adapt()

    asyncio.run(notebook())


class Slow(ObedientPolicy):
    """Waits in its first evaluation until it is let go on, and notes its threads."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work, self.go_on = threading.Event(), threading.Event()
        self.threads: set[threading.Thread] = set()

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        self.threads.add(threading.current_thread())
        self.at_work.set()
        assert self.go_on.wait(20)
        return super().generate(dialogues, adapter=adapter, max_new_tokens=max_new_tokens, on_progress=on_progress)


def test_a_cancelled_run_stops_after_the_step_and_goes_on_as_if_nothing_had_been(tmp_path: Path, task: Task) -> None:
    whole = begun(tmp_path, task, edits(BULLETS), "whole", max_rounds=1)
    whole.adapt()
    policy = Slow()
    run = begun(tmp_path, task, edits(BULLETS), model=policy, max_rounds=1)

    async def cancelled() -> None:
        work = asyncio.create_task(run.aadapt())
        await asyncio.to_thread(policy.at_work.wait, 20)  # the loop is free meanwhile
        for _ in range(2):  # impatient
            work.cancel()
            await asyncio.sleep(0.05)
        assert not work.done()
        assert is_locked(run.folder)
        policy.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not is_locked(run.folder)

    asyncio.run(cancelled())
    assert threading.main_thread() not in policy.threads
    state = run.state()
    assert state is not None
    assert state["status"] == "running"
    run.adapt()
    assert results(run) == results(whole)


def test_a_stream_that_is_left_early_and_a_drained_one_go_on(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(BULLETS), max_rounds=1)

    async def left() -> None:
        async with aclosing(run.astream(("updates",))) as parts:
            async for _, part in parts:
                if "monitor" in part:
                    break
        assert not is_locked(run.folder)
        control = RunControl()
        control.request_drain("enough")
        with pytest.raises(Exception, match="enough"):
            _ = [part async for part in run.astream(control=control)]

    asyncio.run(left())
    assert run.history()[0].next in [("classify",), ("textgrad_edit",)]  # after the step that was under way
    assert len(run.adapt().rounds) == 1


def test_nodes_of_ones_own_may_be_asynchronous(tmp_path: Path, task: Task) -> None:
    seen = []

    async def notify(state: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        seen.append((state["status"], threading.current_thread()))
        return {}

    workflow = build_workflow().add_node("notify", notify).add_edge("finish", "notify")
    asyncio.run(begun(tmp_path, task, edits(BULLETS), max_rounds=1, graph=workflow).aadapt())
    assert seen == [("finished", threading.main_thread())]


@pytest.mark.engines
def test_runs_with_postgresql_are_awaited(tmp_path: Path, task: Task, database: str) -> None:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    async def life() -> None:
        first = begun(tmp_path, task, edits(BULLETS), "url", max_rounds=1, checkpoints=database)
        async with AsyncPostgresSaver.from_conn_string(f"{database}?client_encoding=utf8") as saver:
            await saver.setup()
            other = begun(tmp_path, task, edits(BULLETS), "object", max_rounds=1, checkpoints=saver)
            one, two = await asyncio.gather(first.aadapt(), other.aadapt())
            assert len(one.rounds) == len(two.rounds) == 1
            assert (await asyncio.to_thread(other.replay)).same

    asyncio.run(life())


class Names(BaseCallbackHandler):
    """Notes the runs that begin, with their tags and metadata."""

    def __init__(self) -> None:
        self.began: list[tuple[Any, list[str], dict[str, Any]]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **given: Any) -> None:
        self.began.append((given.get("name"), given.get("tags") or [], given.get("metadata") or {}))


@pytest.mark.parametrize("awaited", [False, True])
def test_a_config_of_the_callers_own_is_added_and_names_no_other_place(
    tmp_path: Path, task: Task, awaited: bool
) -> None:
    run, names = begun(tmp_path, task, edits(BULLETS), max_rounds=1), Names()
    config: Any = {"callbacks": [names], "tags": ["mine"], "metadata": {"team": "a"}, "run_name": "tuning"}
    asyncio.run(run.aadapt(config=config)) if awaited else run.adapt(config=config)
    name, tags, metadata = names.began[0]
    assert (name, tags, metadata["team"]) == ("tuning", ["mine"], "a")
    assert {"evaluate", "finish"} <= {name for name, *_ in names.began}
    for wrong in ("thread_id", "checkpoint_id", "checkpoint_ns"):
        with pytest.raises(SettingsError, match=f"config names a {wrong}: a Run goes on from the newest checkpoint"):
            run.adapt(config={"configurable": {wrong: "x"}})
    with pytest.raises(SettingsError, match="wanted a dict"):
        run.adapt(config="tags")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="would wait for ever"):
        begun(tmp_path, task, edits(BULLETS), "one").adapt(config={"max_concurrency": 1})
    with pytest.raises(RecursionError, match="limit of 2"):
        begun(tmp_path, task, edits(BULLETS), "other").adapt(config={"recursion_limit": 2})
