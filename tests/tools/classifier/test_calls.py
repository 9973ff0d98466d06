"""The call of a failing trajectory that is at fault, and whether it lacks form or content."""

from dataclasses import replace
from typing import Any

import pytest

from nslora.tools.agents.mending import mend_of
from nslora.tools.classifier.calls import judge_calls
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.inference.tool_turns import with_tools
from nslora.tools.rewards.reward import build_reward
from nslora.tools.schema import Example
from nslora.tools.trajectory import ModelCall, Step, ToolCall, Trajectory

PARAMETERS = {"type": "object", "properties": {"word": {"type": "string"}}}
SCHEMA = {"type": "function", "function": {"name": "look_up", "description": "", "parameters": PARAMETERS}}
ASKED = tuple(with_tools([{"role": "user", "content": "Who keeps the mill?"}], [SCHEMA]))
RIGHT = '{"name": "look_up", "arguments": {"word": "mill"}}'
REWARD = build_reward(
    [{"name": "fact", "check": "contains"}, {"name": "style", "check": "regex", "pattern": "- .*", "form": "- {reply}"}]
)
ROW = Example("a", "Who keeps the mill?", "Ada", {})
OTHER = Example("b", "Who keeps the lamp?", "Bo", {})


def call(reply: str, malformed: str = "", *, calls: bool = True) -> ModelCall:
    return ModelCall(ASKED, reply, malformed=malformed, calls_tools=calls)


def found(word: str, result: str, *, failed: bool = False) -> ToolCall:
    return ToolCall("look_up", f'{{"word": "{word}"}}', result, failed)


def said(text: str) -> ModelCall:
    return call(text, calls=False)


GOOD = Trajectory((call(RIGHT), found("lamp", "Bo"), said("- Bo")), "- Bo")


def judged(done: Trajectory, mended: Trajectory | None = None) -> Any:
    failing = grade(REWARD, [replace(ROW, trajectory=done)], [done.answer])
    passing = grade(REWARD, [replace(OTHER, trajectory=GOOD)], ["- Bo"])
    answers = classify_failures(failing, REWARD, known_good=passing)
    (one,) = judge_calls(failing, answers, REWARD, mended={} if mended is None else {"a": mended}, passing=passing)
    return one


def ended(*steps: Step, failure: str = "") -> Trajectory:
    answer = "" if failure else steps[-1].reply if isinstance(steps[-1], ModelCall) else ""
    return Trajectory(steps, answer, failure=failure)


BROKEN = call(f"<tool_call>{RIGHT[:-1]}</tool_call>", "the call is not valid JSON")
MENDED = ended(call(RIGHT), found("mill", "Ada"), said("- Ada"))


@pytest.mark.parametrize(
    ("done", "mended", "verdict", "fault"),
    [
        (ended(BROKEN), MENDED, "form", "call 1: the call is not valid JSON"),
        (ended(BROKEN), ended(call(RIGHT), found("mill", "Ada"), said("Bo")), "both", "call 1: the call is not"),
        (ended(BROKEN), None, "form", "call 1: the call is not valid JSON"),
        (ended(said("Ada")), None, "form", "call 1: no tool was called, but right replies call one"),
        (ended(call(RIGHT), found("mill", "Ada"), said("Ada")), None, "form", "call 2: the answer is not given"),
        (ended(call(RIGHT), found("mill", "Ada"), said("- Bo")), None, "content", "call 2: the answer is wrong"),
        (ended(call(RIGHT), found("lamp", "Bo"), said("- Bo")), None, "content", 'call 1: look_up({"word": "lamp"})'),
        (
            ended(call(RIGHT), found("x", "KeyError: x", failed=True), failure="raised KeyError: x"),
            None,
            "content",
            "call 1: the tool look_up failed with KeyError: x",
        ),
        (ended(call(RIGHT), found("mill", "Ada"), call(RIGHT), failure="made more"), None, "form", "call 2: the agent"),
    ],
)
def test_the_verdict_names_the_call(done: Trajectory, mended: Trajectory | None, verdict: str, fault: str) -> None:
    one = judged(done, mended)
    assert (one.attribution.verdict, one.fault[: len(fault)]) == (verdict, fault)
    if mended is MENDED:
        assert one.attribution.repaired_reward == 1.0


@pytest.mark.parametrize(
    ("reply", "meant"),
    [
        (f"<tool_call>{RIGHT[:-1]}</tool_call>", True),
        (f"<tool_call>{RIGHT}", True),
        (f"I call it.\n```json\n{RIGHT}\n```", True),
        ('{"tool": "look_up", "args": {"word": "mill"}}', True),
        ('{"name": "look_up", "word": "mill"}', True),
        ('{"function": {"name": "look_up", "arguments": "{\\"word\\": \\"mill\\"}"}}', True),
        ('{"name": "absent", "arguments": {"word": "mill"}}', False),
        ('{"answer": "Ada"}', False),
        ("Ada", False),
    ],
)
def test_a_call_in_another_form_is_read_as_it_was_meant(reply: str, meant: bool) -> None:
    mend = mend_of(ended(call(RIGHT), said(reply)))
    assert (mend is not None) == meant
    if mend is not None:
        assert (mend.call, mend.reply) == (1, f"<tool_call>\n{RIGHT}\n</tool_call>")
