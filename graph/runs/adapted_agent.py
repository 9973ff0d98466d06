"""The agent of a finished run, with its adapter and prompt in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_core.messages import convert_to_messages
from langchain_core.runnables import Runnable, RunnableLambda

from nslora.graph.runs.answer import chat_model_of
from nslora.tools.agents.chat import PolicyChat
from nslora.tools.agents.messages import message_of
from nslora.tools.errors import RunError
from nslora.tools.export.chat import ROLES, PairChat
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Message, answered
from nslora.tools.tasks.agent import Prompts
from nslora.tools.tasks.task import Task, load_task
from nslora.tools.trajectory import ModelCall
from nslora.tools.workspace.record import read_run_file


def adapted_agent(folder: Path, task: Task | None = None) -> Runnable[Any, Any]:
    """The agent of the run in `folder`, invoked with a question, or with `{"messages": [...]}` that end with one.

    Args:
        folder: Of the run.
        task: Its task, if it was made from Python objects.

    Raises:
        RunError: If the task has no agent, or was made from Python objects and is not given.
    """
    record = read_run_file(folder)["task"]
    if task is None and not record["source"]:
        raise RunError(f"The task of {folder} was made from Python objects: give it, as in result.agent(task).")
    task = task or load_task(record["source"], **record["options"])
    if task.agent is None:
        raise RunError(f"The task of {folder} has no agent: use result.chat_model().")
    pair_chat = chat_model_of(folder, max_tokens=task.max_new_tokens)
    prompt = pair_chat.pair.prompt
    prompts = Prompts(prompt)
    chat = PolicyChat(call=_Calls(pair_chat).call, texts=prompts, name_of_model=pair_chat.model_name)
    made: Runnable[Any, Any] = RunnableLambda(_InPrompt(prompt).given) | task.agent.make(chat, prompts)
    return made


class _InPrompt:
    """What an agent is invoked with, put under the prompt as in the run."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt

    def given(self, asked: Any) -> dict[str, Any]:
        """The messages of a question."""
        turns = [("user", asked)]
        if isinstance(asked, Mapping):
            found = convert_to_messages(asked["messages"])
            turns = [(ROLES.get(each.type, "user"), str(each.text)) for each in found]
        question = turns[-1][1]
        return {
            "messages": convert_to_messages(self.prompt.messages(question, tuple(turns[:-1]))),
            "question": question,
        }


class _Calls:
    """Answers one call after the other, in this process."""

    def __init__(self, pair_chat: PairChat) -> None:
        self.pair_chat = pair_chat

    def call(self, dialogue: list[Message], reads_tools: bool) -> ModelCall:
        """The reply to a dialogue."""
        chat = self.pair_chat
        with chat._lock:
            policy, count = chat.policy, chat.policy.count_tokens(dialogue)
            made = policy.generate([dialogue], adapter=chat.pair.adapter_name, max_new_tokens=chat._room(dialogue))
            whole = policy.count_tokens(answered(dialogue, made.replies[0]))
        _, calls = message_of(dialogue, made.replies[0], reads_tools=reads_tools, metadata={})
        return ModelCall(
            tuple(dialogue),
            made.replies[0],
            malformed=calls.problem,
            truncated=bool(made.truncated),
            prompt_tokens=count,
            forward_tokens=max(count, whole),
        )
