"""What a finished run gives: the pair of prompt and adapter, its test scores, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nslora.graph.runs.view import Round, round_of
from nslora.tools.files import read_text
from nslora.tools.prompt import Prompt, parse

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from nslora.tools.export.chat import PairChat
    from nslora.tools.tasks.task import Task


class TestScores(NamedTuple):
    """Base and result on the test split: shares of replies that pass every check, or mean rewards, in [0, 1].

    Attributes:
        base: Of the untouched model under the task's own prompt.
        result: Of the pair that the run chose.
        gain: `result - base`.
        low: Lower end of the gain's 95 % bootstrap interval, paired by question.
        high: Its upper end.
        n: Test questions.
    """

    base: float
    result: float
    gain: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        prompt: The prompt that was chosen.
        adapter: Folder of the PEFT adapter that was chosen; None if the weights stay as they are.
        test: Base and result on the test split, which is looked at once: shares of replies that pass every check.
        test_reward: The same of the mean reward, which tells more if checks give parts. The interval is NaN in a run of
            an earlier version.
        cost: Tokens, TFLOP, editor calls and editor cost of the run. The tokens count the first evaluation and the
            test split, `tflop` only the first evaluation; `test_tflop` is the rest.
        rounds: What each round did.
        stop: Why the run ended.
        folder: The run's folder; the result lies in `folder / "result"`.
        report: `result/report.json`, everything else.
    """

    prompt: Prompt
    adapter: Path | None
    test: TestScores
    test_reward: TestScores
    cost: Mapping[str, float]
    rounds: tuple[Round, ...]
    stop: str
    folder: Path
    report: Mapping[str, Any] = field(repr=False)

    def chat_model(self, *, merged_prompt: bool = False, max_tokens: int = 512) -> "PairChat":
        """The pair as a LangChain chat model, with prompt and adapter in it, also as a node of a LangGraph graph.

        Args:
            merged_prompt: Take the adapter that `Run.merge_prompt` kept, which needs no prompt.
            max_tokens: Longest reply.

        Raises:
            RunError: If no merged prompt was kept.
        """
        from nslora.graph.runs.answer import chat_model_of
        from nslora.graph.runs.merge_prompt import folder_in

        return chat_model_of(folder_in(self.folder) if merged_prompt else self.folder, max_tokens=max_tokens)

    def agent(self, task: "Task | None" = None) -> "Runnable[Any, Any]":
        """The adapted agent of a task that has one, as a Runnable: `agent.invoke("a question")`.

        Args:
            task: The task, if it was made from Python objects.

        Raises:
            RunError: If the task has no agent, or is not given and cannot be loaded.
        """
        from nslora.graph.runs.adapted_agent import adapted_agent

        return adapted_agent(self.folder, task)


def result_of(folder: Path, report: Mapping[str, Any]) -> Result:
    """The result of the finished run in `folder`, whose report this is."""
    test, adapter = report["test"], folder / "result" / "adapter"
    gain = {"reward_interval": (nan, nan), **test["gain"]}

    def scores(of: str, interval: str) -> TestScores:
        (low, high), base, result = gain[interval], test["base"][of], test["result"][of]
        return TestScores(base, result, result - base, low, high, test["questions"])

    return Result(
        prompt=parse(read_text(folder / "result" / "prompt.md")),
        adapter=adapter if report["result"]["adapter"] else None,
        test=scores("all_checks", "interval"),
        test_reward=scores("reward", "reward_interval"),
        cost=report["cost"],
        rounds=tuple(round_of(each) for each in report["rounds"]),
        stop=report["stop"],
        folder=folder,
        report=report,
    )
