"""On a real (tiny) model: replies of shared batches are those of batch 1, and samples are repeatable draws."""

from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda

from nslora.tools.agents.running import run_agent
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import Sampling
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.testing.tiny_model import write_tiny_model
from nslora.tools.testing.tiny_task import PLACES

ROWS = [
    {"question": f"Who keeps the {place} {'and the ' * (i % 5)}gate?", "reference": "ok"}
    for i, place in enumerate(PLACES)
]


def thrice(chat: Any, prompts: Any) -> Any:
    """Three calls; each sends all that was said before, so that lengths differ."""

    def run(state: Any) -> Any:
        messages = list(state["messages"])
        for _ in range(3):
            messages += [chat.invoke(messages), ("user", "And then?")]
        return f"It said {messages[-2].text}"

    return RunnableLambda(run)


def task_of(in_flight: int) -> Task:
    splits = {"train": ROWS[:8], "validation": ROWS[8:10], "test": ROWS[10:]}
    return task_from_rows(**splits, agent={"make": thrice, "in_flight": in_flight}, max_new_tokens=6)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LocalPolicy:
    folder = tmp_path_factory.mktemp("tiny")
    return LocalPolicy.load(str(write_tiny_model(folder / "model", "qwen2", blocks=2)), adapters=folder / "adapters")


@pytest.mark.engines
def test_trajectories_of_shared_batches_are_those_of_batch_1(policy: LocalPolicy) -> None:
    def answers(in_flight: int, sampling: Sampling | None = None) -> list[list[str]]:
        task = task_of(in_flight)
        rows = (*task.train, *task.validation, *task.test)
        flown = run_agent(policy, None, task, task.prompt, rows, adapter=None, sampling=sampling)
        assert not any(each.failure for each in flown.trajectories)
        return [[call.reply for call in each.calls] for each in flown.trajectories]

    greedy = answers(16)
    assert greedy == answers(1)
    drawn = answers(16, Sampling(1.0, 1))
    assert drawn == answers(1, Sampling(1.0, 1))
    assert len({str(each) for each in (greedy, drawn, answers(16, Sampling(1.0, 2)))}) == 3
