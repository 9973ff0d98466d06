"""An agent over the tiny task, with a tool and two nodes, and a policy without a model that can learn to call it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes import FakePolicy, last_word
from langchain_core.messages import SystemMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from nslora.tools.policy import Generated, OnProgress, Sampling, no_progress
from nslora.tools.schema import Dialogue
from nslora.tools.testing.tiny_task import KEEPERS, PLACES, write_tiny_task

CALLED: list[str] = []  # places that were looked up
SECTIONS = """
agent: agent_fakes:make_agent
prompt: |
  # Question template

  {question}

  # Section researcher

  Look places up.

  # Section look_up

  Tells who keeps a place.
"""


@tool
def look_up(place: str) -> str:
    """Say who keeps a place."""
    CALLED.append(place)
    return KEEPERS[PLACES.index(place) % len(KEEPERS)]


def make_agent(chat: Any, prompts: Any) -> Any:
    """A model node and a tool node, in a loop."""
    model = chat.bind_tools([look_up])

    def researcher(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke([SystemMessage(prompts["researcher"]), *state["messages"]])]}

    graph = StateGraph(MessagesState)
    graph.add_node("researcher", researcher)
    graph.add_node("tools", ToolNode([look_up]))
    graph.add_edge(START, "researcher")
    graph.add_conditional_edges("researcher", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "researcher")
    return graph.compile()


def write_agent_task(folder: Path, rows: int = 8) -> Path:
    """The tiny task with this agent."""
    path = write_tiny_task(folder, rows) / "task.yaml"
    path.write_text(path.read_text() + SECTIONS)
    return folder


class AgentPolicy(FakePolicy):
    """Calls the tool, malformed unless it was trained on right calls; answers with what the tool said.

    It answers in the asked form ("- ") if a system turn says "dash", or if it was trained on such an answer. Sampled
    replies are right in every second sample. batches: sizes of what it was asked.
    """

    fingerprint = "fake-agent-policy"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.batches: list[int] = []

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
        sampling: Sampling | None = None,
    ) -> Generated:
        self.batches.append(len(dialogues))
        lucky = sampling is not None and sampling.number % 2 == 0
        known = self._memory(adapter) if adapter else {}
        replies = tuple(self._next(dialogue, known, lucky) for dialogue in dialogues)
        return Generated(replies, sum(len(reply.split()) for reply in replies))

    def _next(self, dialogue: Dialogue, known: dict[str, str], lucky: bool) -> str:
        replies, last = list(known.values()), dialogue[-1]
        system = "\n".join(turn["content"] for turn in dialogue if turn["role"] == "system")
        if last["role"] == "tool":
            dash = lucky or "dash" in system or any(reply.startswith("- ") for reply in replies)
            return f"- {last['content']}" if dash else last["content"]
        asked = last["content"].split("?")[0].split(" is kept")[0].split()[-1].strip(".")
        call = json.dumps({"name": "look_up", "arguments": {"place": asked}})
        calls = lucky or "dash" in system or any(reply.startswith("<tool_call>") for reply in replies)
        return f"<tool_call>\n{call if calls else call[:-1]}\n</tool_call>"


__all__ = ["CALLED", "AgentPolicy", "last_word", "look_up", "make_agent", "write_agent_task"]
