"""The agent of the embedded task `handbook-agent`: a librarian who may look things up, and a writer who answers."""

import functools
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import SystemMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from nslora.tools.prompt import normalise
from nslora.tools.tasks.task import load_task

FOUND = 2  # entries


@functools.cache
def entries() -> tuple[tuple[str, frozenset[str]], ...]:
    """The handbook: its train questions with their answers, and the words of each."""
    return tuple(
        (f"{row.question} {row.reference}", frozenset(normalise(row.question).split()))
        for row in load_task("handbook").train
    )


@tool
def look_up(words: str) -> str:
    """Finds what the handbook says about some words."""
    wanted = set(normalise(words).split())
    ranked = sorted(entries(), key=lambda entry: -len(wanted & entry[1]))
    found = [text for text, known in ranked[:FOUND] if wanted & known]
    return "\n".join(found) or "The handbook says nothing about that."


def make_agent(chat: BaseChatModel, prompts: Mapping[str, str]) -> Any:
    """A graph of two nodes that call the model; without a call of the tool, the writer answers from what it knows."""
    with_tool = chat.bind_tools([look_up])

    def librarian(state: MessagesState) -> dict[str, Any]:
        return {"messages": [with_tool.invoke([SystemMessage(prompts["librarian"]), *state["messages"]])]}

    def writer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [chat.invoke([SystemMessage(prompts["writer"]), *state["messages"]])]}

    graph = StateGraph(MessagesState)
    graph.add_node("librarian", librarian)
    graph.add_node("look_up", ToolNode([look_up]))
    graph.add_node("writer", writer)
    graph.add_edge(START, "librarian")
    graph.add_conditional_edges("librarian", tools_condition, {"tools": "look_up", END: "writer"})
    graph.add_edge("look_up", "writer")
    graph.add_edge("writer", END)
    return graph.compile()
