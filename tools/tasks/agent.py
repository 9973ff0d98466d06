"""The agent of a task: a user's function that makes a LangChain Runnable of a chat model and the prompts in force."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from nslora.tools.errors import PromptError, RewardError, TaskError
from nslora.tools.files import sha256_of_json
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.function_hash import first_text_of
from nslora.tools.rewards.functions import find_function
from nslora.tools.schema import Settings

# Settings that change how a trajectory is computed and not what comes of it.
_NOT_HASHED = {"in_flight"}


class AgentSpec(Settings):
    """The agent of a task.yaml.

    Attributes:
        make: `package.module:function`; see `Agent`.
        max_calls: Most calls of the policy in one trajectory.
        max_seconds: Longest own work of a trajectory, in seconds; waiting for the policy does not count.
        in_flight: Trajectories at once; their calls share batches.
        answer: Key of the final state that holds the answer. None: the last message, or `answer` or `output`.
        samples: Further trajectories of a train row whose greedy one earns no full reward, to learn from; 0 for none.
        temperature: Of the samples.
        credit: `package.module:function`: which calls of a passing trajectory weights learn. None: all.
    """

    make: str | Any
    max_calls: int = Field(8, ge=1, strict=True)
    max_seconds: float = Field(120.0, gt=0)
    in_flight: int = Field(32, ge=1, strict=True)
    answer: str | None = None
    samples: int = Field(4, ge=0, strict=True)
    temperature: float = Field(1.0, gt=0)
    credit: str | Any = None


@dataclass(frozen=True)
class Agent:
    """A task's agent.

    Attributes:
        spec: Its settings.
        make: Called with (chat model, prompts) for each trajectory; returns a Runnable, such as a compiled LangGraph
            graph. It is invoked with `{"messages": [...], "question": text}`. prompts: texts by section name.
        credit: Called with (trajectory, example); returns the numbers of the calls that weights learn, from 0. None:
            all calls.
    """

    spec: AgentSpec
    make: Callable[..., Any]
    credit: Callable[..., Any] | None = None

    @property
    def hashed(self) -> dict[str, Any]:
        """All that decides what a trajectory is, as plain values: settings, and the code of the functions."""
        plain = self.spec.model_dump(exclude={"make", "credit", *_NOT_HASHED})
        functions = {"make": self.make, "credit": self.credit}
        code = {name: _code_of(each) for name, each in functions.items() if each is not None}
        return {**plain, "code": code}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `hashed`, 16 hex characters."""
        return sha256_of_json(self.hashed)[:16]


def _code_of(function: Callable[..., Any]) -> str:
    return hashlib.sha256(first_text_of(function, whole=_stands_in_a_module(function)).encode()).hexdigest()


def _stands_in_a_module(function: Callable[..., Any]) -> bool:
    """Whether the source of the whole module belongs to it: its helpers, nodes and tools."""
    module = inspect.getmodule(function)
    return module is not None and module.__name__ != "__main__" and bool(getattr(module, "__file__", None))


class Prompts(dict[str, str]):
    """The texts of a prompt's sections by name, as an agent reads them. system: the prompt's own system turn."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__({section.name: section.text for section in prompt.sections})
        self.system = prompt.messages("")[0]["content"] if prompt.system else ""

    def __missing__(self, name: str) -> str:
        raise PromptError(
            f"The agent reads the section {name!r}, which the prompt lacks (sections: {', '.join(self) or 'none'}): "
            f'add "# Section {name}" with its text to the prompt.'
        )


def agent_of(spec: AgentSpec, where: str, folder: Path | None = None) -> Agent:
    """Find the functions of an agent.

    Args:
        spec: Its settings.
        where: File and line, for messages.
        folder: Is searched first for the modules.

    Raises:
        TaskError: If a function cannot be found, or `make` does not take a chat model and prompts.
    """
    make = _function("agent", spec.make, where, folder)
    credit = None if spec.credit is None else _function("agent's credit", spec.credit, where, folder)
    try:
        inspect.signature(make).bind(None, {})
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"{where}: the agent {spec.make!r} cannot be called with a chat model and prompts ({error}): write "
            "def make_agent(chat, prompts), which returns a Runnable."
        ) from error
    return Agent(spec, make, credit)


def _function(what: str, given: Any, where: str, folder: Path | None) -> Callable[..., Any]:
    if isinstance(given, str) and ":" in given:
        try:
            return find_function(what, given, folder)
        except RewardError as error:
            raise TaskError(f"{where}: {error}") from error
    if not callable(given):
        raise TaskError(f"{where}: the {what} is {given!r}: give a function, or its name as package.module:function.")
    called: Callable[..., Any] = given
    return called


def agent_spec(given: Any) -> Any:
    """The value of `agent` in a task.yaml: a name or a function alone is its `make`."""
    return given if given is None or isinstance(given, Mapping | AgentSpec) else {"make": given}
