"""What an agent did for one row: its calls of the policy and of tools, in order, and what it ended with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nslora.tools.schema import Message


@dataclass(frozen=True)
class ModelCall:
    """One call of the policy.

    Attributes:
        dialogue: What was sent; a first turn of the role `tools` holds the schemas of tools.
        reply: What came, as the policy wrote it.
        sections: Names of the prompt's sections whose text was sent.
        malformed: Why a tool call in the reply cannot be read; "" if all can.
        calls_tools: Whether the reply holds a call, readable or not.
        truncated: Whether the length limit ended the reply.
        prompt_tokens: Tokens of the dialogue.
        forward_tokens: Prompt and reply together.
    """

    dialogue: tuple[Message, ...]
    reply: str
    sections: tuple[str, ...] = ()
    malformed: str = ""
    calls_tools: bool = False
    truncated: bool = False
    prompt_tokens: int = 0
    forward_tokens: int = 0


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool. failed: whether `result` is the error that it raised."""

    name: str
    arguments: str
    result: str
    failed: bool = False


Step = ModelCall | ToolCall


@dataclass(frozen=True)
class Trajectory:
    """All that an agent did for one row.

    Attributes:
        steps: Calls in the order in which they ended.
        answer: Its final answer as text; "" if it failed.
        state: Its final state, as plain values.
        failure: Why it failed, as the end of a sentence that begins with "The agent"; "" if it did not.
    """

    steps: tuple[Step, ...] = ()
    answer: str = ""
    state: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""

    def __hash__(self) -> int:
        return hash((len(self.steps), self.answer, self.failure))

    @property
    def calls(self) -> list[ModelCall]:
        """The calls of the policy."""
        return [step for step in self.steps if isinstance(step, ModelCall)]

    @property
    def tools_used(self) -> list[ToolCall]:
        """The calls of tools."""
        return [step for step in self.steps if isinstance(step, ToolCall)]

    @property
    def truncated(self) -> bool:
        """Whether the length limit ended the last reply."""
        return bool(self.calls) and self.calls[-1].truncated

    @property
    def fault(self) -> int:
        """Number of the step where a failing trajectory probably went wrong, from 0.

        The first malformed call, else the first tool that failed, else the last call of the policy.
        """
        malformed = [i for i, step in enumerate(self.steps) if isinstance(step, ModelCall) and step.malformed]
        failed = [i for i, step in enumerate(self.steps) if isinstance(step, ToolCall) and step.failed]
        calls = [i for i, step in enumerate(self.steps) if isinstance(step, ModelCall)]
        return (malformed or failed or calls[-1:] or [0])[0]

    def told(self, characters: int = 160, around: int = 1) -> str:
        """What was done, one step a line, shortened to the steps around the fault and the last one.

        characters: Most of each text. around: Steps that are shown before and after the fault.
        """
        shown = {*range(self.fault - around, self.fault + around + 1), len(self.steps) - 1}
        lines, left_out = [], 0
        for i, step in enumerate(self.steps):
            if i not in shown:
                left_out += 1
                continue
            lines += [f"({left_out} steps)"] if left_out else []
            left_out = 0
            lines.append(f"{i + 1}. {_told(step, characters)}")
        return "\n".join([*lines, *([f"The agent {self.failure}."] if self.failure else [])])

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it."""
        steps = [{"kind": type(step).__name__, **asdict(step)} for step in self.steps]
        return json.dumps({**asdict(self), "steps": steps}, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Trajectory:
        """Read what `to_json` wrote."""
        record = json.loads(text)
        return cls(**{**record, "steps": tuple(_step(**step) for step in record["steps"])})


def _told(step: Step, characters: int) -> str:
    if isinstance(step, ToolCall):
        what = "failed with" if step.failed else "said"
        return f"tool {step.name}({_short(step.arguments, characters)}) {what}: {_short(step.result, characters)}"
    where = f" (sections {', '.join(step.sections)})" if step.sections else ""
    wrong = f" [malformed call: {step.malformed}]" if step.malformed else ""
    cut = " [cut off by the length limit]" if step.truncated else ""
    return f"model{where} wrote: {_short(step.reply, characters) or '(nothing)'}{wrong}{cut}"


def _short(text: str, characters: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters // 2]} ... {text[-(characters // 2) :]}"


def _step(kind: str, **values: Any) -> Step:
    if kind == ToolCall.__name__:
        return ToolCall(**values)
    return ModelCall(**{**values, "dialogue": tuple(values["dialogue"]), "sections": tuple(values["sections"])})
