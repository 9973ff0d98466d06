"""Rewards that score differently give different task hashes; one reward has one hash in every process."""

import functools
import hashlib
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nslora.graph.runs.run import Run
from nslora.tools.errors import RunError
from nslora.tools.rewards.function_hash import described
from nslora.tools.rewards.reward import build_reward
from nslora.tools.tasks.task import Task, task_from_rows


def code(reward: Callable[..., Any]) -> str:
    """The hash of the function, part of the task's hash."""
    found: str = build_reward(reward).spec["checks"][0]["code"]
    return found


def paying(full: Any) -> Callable[..., float]:
    def reward(question: str, reference: str, reply: str) -> float:
        return float(full) if reference in reply else 0.0

    return reward


class Judge:
    def __init__(self, full: Any) -> None:
        self.full, self.lock = full, threading.Lock()

    def __call__(self, question: str, reference: str, reply: str) -> float:
        return self.grade(reference, reply)

    def score(self, question: str, reference: str, reply: str) -> float:
        return self.grade(reference, reply)

    def grade(self, reference: str, reply: str) -> float:
        return float(self.full) if reference in reply else 0.0


class Scale:
    def __init__(self, full: float) -> None:
        self.full = full


@dataclass
class Words:
    known: frozenset[str]


def with_default(full: float) -> Callable[..., float]:
    def reward(reply: str, most: float = full) -> float:
        return most

    return reward


def with_keyword(full: float) -> Callable[..., float]:
    def reward(reply: str, *, most: float = full) -> float:
        return most

    return reward


def wrapping(inner: Callable[..., float], factor: float) -> Callable[..., float]:
    @functools.wraps(inner)
    def reward(*args: Any) -> float:
        return factor * inner(*args)

    return reward


def without_source(body: str) -> Callable[..., float]:
    names: dict[str, Any] = {}
    exec(f"def reward(reply):\n    return {body}\n", names)
    made: Callable[..., float] = names["reward"]
    return made


def ordinary(question: str, reference: str, reply: str, least: int = 1) -> float:
    return float(len(reply) >= least)


TWO = [lambda question, reference, reply: 1.0, lambda question, reference, reply: 0.0]
CASES = [lambda reply: float(reply == reply.upper()), lambda reply: float(reply == reply.lower())]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (paying(1.0), paying(0.25)),
        (paying(paying(1.0)), paying(paying(0.25))),
        (paying(Scale(1.0)), paying(Scale(0.5))),
        (paying(Words(frozenset("a"))), paying(Words(frozenset("b")))),
        (with_default(1.0), with_default(0.5)),
        (with_keyword(1.0), with_keyword(0.5)),
        (Judge(1.0), Judge(0.5)),
        (Judge(1.0).score, Judge(0.5).score),
        (wrapping(ordinary, 1.0), wrapping(ordinary, 0.5)),
        (wrapping(paying(1.0), 1.0), wrapping(paying(0.5), 1.0)),
        (functools.cache(paying(1.0)), functools.cache(paying(0.5))),
        (functools.partial(ordinary, least=Scale(1.0)), functools.partial(ordinary, least=Scale(2.0))),
        (without_source("1.0"), without_source("0.0")),
        (without_source("float(reply.isupper())"), without_source("float(reply.islower())")),
        (without_source("reply in {'a'}"), without_source("reply in {'b'}")),
        TWO,
        CASES,
    ],
)
def test_rewards_that_score_differently_have_different_hashes(
    one: Callable[..., Any], other: Callable[..., Any]
) -> None:
    assert code(one) == code(one) != code(other)


def test_of_an_ordinary_function_the_source_alone_counts() -> None:
    assert code(ordinary) == hashlib.sha256(inspect.getsource(ordinary).encode()).hexdigest()


def test_a_function_that_refers_to_itself_or_to_an_unassigned_name_has_a_hash() -> None:
    def reward(reply: str) -> float:
        return reward(reply[1:]) if reply else later

    assert code(reward)
    later = 1.0


REWARDS = """
import functools, threading
from nslora.tools.rewards.reward import build_reward

class Client:
    def __init__(self):
        self.lock, self.words = threading.Lock(), {"a", "b", "c"}

class Judge:
    def __init__(self):
        self.client, self.words, self.ways = Client(), {"a", "b", "c", "d"}, [self.score]

    def score(self, reply):
        return 1.0

    __call__ = score

def paying(words, client):
    def reward(reply, least=words, sure=client):
        return float(reply in words and client is not None)
    return reward

def judge(reply, words):
    return 1.0

held = [lambda reply: reply in {"a", "b", "c"}, lambda reply: 1.0]
for each in (Judge(), Judge().score, paying({"a", "b", "c"}, Client()), held[0],
             functools.partial(judge, words={"a", "b", "c"})):
    print(build_reward(each).spec["checks"][0]["code"])
"""


def test_one_reward_has_one_name_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    printed = {
        subprocess.run(
            [sys.executable, "rewards.py"],
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_a_run_does_not_go_on_under_another_reward(
    keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    rows = {
        split: [{"question": row.question, "reference": str(row.reference)} for row in getattr(keepers, split)]
        for split in ("train", "validation", "test")
    }
    task, other = (task_from_rows(**rows, reward=paying(full)) for full in (1.0, 0.5))
    Run.create(tmp_path / "run", task=task, model=str(tiny_folder()))
    with pytest.raises(RunError, match="another task"):
        Run.open(tmp_path / "run", task=other)


def test_a_reward_that_counts_its_calls_stays_the_same_one_in_its_process() -> None:
    class Judge:
        def __init__(self) -> None:
            self.calls = 0

        def judge(self, reply: str) -> float:
            self.calls += 1
            return 1.0

    owner = Judge()
    before = code(owner.judge)
    owner.judge("x")
    assert code(owner.judge) == before
    assert code(Judge().judge) == before  # made anew, as in another process


def test_arrays_that_differ_in_their_middle_have_different_descriptions() -> None:
    one, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1.0
    assert described(one) != described(other)
    assert described(one) == described(np.zeros(5000))
