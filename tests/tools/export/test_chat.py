"""The pair as a chat model: what it is sent, its replies, its pieces; and as a node of a graph."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from nslora.graph.runs.answer import SideBySide
from nslora.tools.errors import ExportError, ModelError
from nslora.tools.export import answers
from nslora.tools.export.answers import answer_in_lots
from nslora.tools.export.chat import PairChat

QUESTIONS = ("Who keeps the mill?", "The bridge is kept by whom?", "Name the keeper.")


@pytest.fixture
def chat(known_pair: Callable[..., Any]) -> PairChat:
    return PairChat(pair=known_pair().pair, max_tokens=12)


def test_it_replies_as_the_run_did_whole_and_in_pieces(chat: PairChat, known_pair: Callable[..., Any]) -> None:
    replies = known_pair().replies
    assert tuple(str(chat.invoke(question).content) for question in QUESTIONS) == replies
    pieces = [str(each.content) for each in chat.stream(QUESTIONS[0])]
    assert "".join(pieces).strip() == replies[0]
    assert asyncio.run(chat.ainvoke(QUESTIONS[1])).content == replies[1]
    first = next(iter(chat.stream(QUESTIONS[2])))  # who stops listening blocks nobody
    assert str(chat.invoke(QUESTIONS[2]).content).startswith(str(first.content).strip())
    end = replies[0][-1]
    assert chat.invoke(QUESTIONS[0], stop=[end]).content == replies[0].partition(end)[0]


def test_it_is_sent_the_prompt_around_the_messages(chat: PairChat) -> None:
    told = [SystemMessage("Sell tea."), HumanMessage("Hi"), AIMessage("Hello"), HumanMessage("Who?")]
    sent = chat.sent(told)
    assert sent[0] == {"role": "system", "content": "Be brief.\n\nSell tea."}
    assert [turn["content"] for turn in sent[3:]] == ["Hi", "Hello", "Q: Who?\nA?"]
    with pytest.raises(ModelError, match=r"the last message is ai: end with a HumanMessage"):
        chat.invoke(told[:3])


def test_it_is_a_node_of_a_graph(chat: PairChat, known_pair: Callable[..., Any]) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    graph = StateGraph(MessagesState).add_node("reply", lambda state: {"messages": [chat.invoke(state["messages"])]})
    compiled = graph.add_edge(START, "reply").compile()
    done = compiled.invoke({"messages": [HumanMessage(QUESTIONS[0])]})
    assert done["messages"][-1].content == known_pair().replies[0]
    written = compiled.stream({"messages": [HumanMessage(QUESTIONS[0])]}, stream_mode="messages")
    assert "".join(str(chunk.content) for chunk, _ in written).strip() == known_pair().replies[0]


def test_base_and_result_stand_side_by_side(chat: PairChat, known_pair: Callable[..., Any]) -> None:
    talk, known = SideBySide(chat), known_pair()
    said = {name: "".join(pieces).strip() for name, pieces in talk.ask(QUESTIONS[0])}
    assert said == {"base": known.base_replies[0], "result": known.replies[0]}
    assert known.replies[0] in talk.shown("And then?")
    talk.forget()
    assert known.replies[0] not in talk.shown("And then?")


def test_answers_go_on_where_a_killed_process_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    dialogues = [[{"role": "user", "content": str(i)}] for i in range(7)]

    def ask(lot: Any, dies_at: str = "") -> list[str]:
        asked.extend(each[0]["content"] for each in lot)
        if dies_at in asked:
            raise KeyboardInterrupt
        return [f"reply {each[0]['content']}" for each in lot]

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        answer_in_lots(lambda lot: ask(lot, "5"), dialogues, kept, lot=2)
    with kept.open("a") as file:
        file.write('["reply 4", "re')  # killed while it wrote
    asked.clear()
    assert answer_in_lots(ask, dialogues, kept, lot=2) == [f"reply {i}" for i in range(7)]
    assert asked == ["4", "5", "6"]
    full = itertools.repeat(OSError(28, "No space left on device"))
    monkeypatch.setattr(answers, "append_jsonl", lambda *_: (_ for _ in ()).throw(next(full)))
    with pytest.raises(ExportError, match=r"No space left on device.*give the same command again; 0 replies are kept"):
        answer_in_lots(ask, dialogues, tmp_path / "full")
