"""Async functions are awaited, many at once; what fails for a while is tried again."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nslora.tools.errors import RewardError, UnreachableRewardError
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.rewards import calling
from nslora.tools.rewards.reward import build_reward
from nslora.tools.schema import Example

ROWS = [Example(f"train-{i}", f"Question {i}?", f"answer {i}", {}) for i in range(40)]


class StatusError(Exception):
    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.response = SimpleNamespace(status_code=status, headers=headers)


class ResponseError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("no")
        self.response = SimpleNamespace(status_code=status)


class APIConnectionError(Exception):
    """As openai's: it has no status."""


def caused(cause: BaseException) -> Exception:
    error = ValueError("the judge failed")
    error.__cause__ = cause
    return error


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(calling.time, "sleep", waits.append)
    return waits


def failing(errors: Iterator[BaseException]) -> Callable[..., float]:
    def judge(reply: str) -> float:
        if (error := next(errors, None)) is not None:
            raise error
        return 0.5

    return judge


PASSING = [
    StatusError(429),
    StatusError(500),
    StatusError(503),
    StatusError(408),
    ResponseError(529),
    TimeoutError("late"),
    ConnectionResetError("lost"),
    ConnectionRefusedError(),
    APIConnectionError(),
    caused(StatusError(429)),
    ExceptionGroup("two", [StatusError(429), TimeoutError()]),
]
LASTING = [
    StatusError(400),
    StatusError(401),
    ResponseError(404),
    KeyError("score"),
    ValueError("429"),
    caused(StatusError(401)),
    FileNotFoundError("rubric.txt"),
    ExceptionGroup("two", [StatusError(429), KeyError("score")]),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_failure_that_passes_is_tried_again(error: Exception, slept: list[float]) -> None:
    assert build_reward(failing(iter([error, error])))(ROWS[0], "x").value == 0.5
    assert slept == [1.0, 2.0]


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_another_failure_is_not(error: Exception, slept: list[float]) -> None:
    with pytest.raises(RewardError, match="begin a new run") as caught:
        build_reward(failing(iter([error])))(ROWS[0], "x")
    assert not isinstance(caught.value, UnreachableRewardError)
    assert slept == []


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_after_the_last_try_the_error_advises_to_resume(error: Exception, slept: list[float]) -> None:
    with pytest.raises(UnreachableRewardError, match=r"on row 'train-0'.* 6 tries.*resume") as caught:
        build_reward(failing(iter([error] * 6)))(ROWS[0], "x")
    assert "begin a new run" not in str(caught.value)
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_the_server_may_say_how_long_to_wait(slept: list[float]) -> None:
    errors = [StatusError(429, **{"retry-after": wait}) for wait in ("7", "900", "Wed, 21 Oct 2026 07:28:00 GMT")]
    build_reward(failing(iter(errors)))(ROWS[0], "x")
    assert slept == [7.0, 60.0, 4.0]


def test_an_async_function_is_awaited_many_at_once_with_a_cap() -> None:
    at_work = most = 0

    async def judge(reference: str, reply: str) -> dict[str, Any]:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        return {"score": float(reply == reference), "reason": f"not {reply}"}

    reward = build_reward(judge)
    replies = [row.reference or "" if i % 2 else f"reply {i}" for i, row in enumerate(ROWS)]
    graded = grade(reward, ROWS, replies)
    assert [each.score.value for each in graded] == [float(i % 2) for i in range(40)]
    assert all(f"not reply {i}" in graded[i].score.feedback for i in range(0, 40, 2))
    assert 1 < most <= calling.AT_ONCE
    assert reward.calls == 60  # each reply, and the reference of each failing row
    assert grade(reward, ROWS, replies) == graded
    assert reward.calls == 60


def test_all_calls_share_one_event_loop() -> None:
    """A client that was made in one loop does not work in another."""
    loops = set()

    async def judge(reply: str) -> float:
        loops.add(id(asyncio.get_running_loop()))
        return 0.5

    reward = build_reward(judge)
    grade(reward, ROWS, ["x"] * len(ROWS))
    reward.fresh(ROWS[0], "y")

    async def notebook() -> float:
        return reward(ROWS[1], "z").value

    assert asyncio.run(notebook()) == 0.5
    assert len(loops) == 1


def test_an_async_object_and_a_sync_function_that_gives_a_coroutine_are_awaited() -> None:
    class Judge:
        async def __call__(self, reply: str) -> float:
            return 0.25

    assert build_reward(Judge())(ROWS[0], "x").value == 0.25
    assert build_reward(lambda reply: Judge()(reply))(ROWS[0], "x").value == 0.25


@pytest.mark.parametrize("error", [KeyError("score"), SystemExit(3)])
def test_an_async_function_that_raises_stops_the_run_with_the_row(error: BaseException) -> None:
    async def judge(example: Example, reply: str) -> float:
        if example.id == "train-7":
            raise error
        return 0.5

    with pytest.raises(RewardError, match="on row 'train-7'"):
        grade(build_reward(judge), ROWS, ["x"] * len(ROWS))

    async def sound(reply: str) -> float:
        return 0.5

    assert build_reward(sound)(ROWS[0], "x").value == 0.5  # the loop goes on


def test_async_calls_are_tried_again_too(slept: list[float]) -> None:
    seen: dict[str, int] = {}

    async def judge(example: Example, reply: str) -> float:
        seen[example.id] = seen.get(example.id, 0) + 1
        if seen[example.id] == 1:
            raise StatusError(429)
        return 0.5

    graded = grade(build_reward(judge), ROWS, ["x"] * len(ROWS))
    assert {each.score.value for each in graded} == {0.5}
    assert len(slept) == len(ROWS)


def test_a_sync_function_beside_an_async_one_runs_in_one_thread_at_a_time() -> None:
    busy = threading.Lock()

    def alone(reply: str) -> float:
        assert busy.acquire(blocking=False)
        busy.release()
        return 0.5

    async def judge(reply: str) -> float:
        await asyncio.sleep(0)
        return 0.5

    reward = type(build_reward("upper_case"))(
        [build_reward(alone).checks[0], build_reward(judge).checks[0].model_copy(update={"name": "judge"})]
    )
    assert {each.score.value for each in grade(reward, ROWS, ["x"] * len(ROWS))} == {0.5}
