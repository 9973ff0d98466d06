"""Nodes, routers and parent graphs of a user's own keep the tools of a Run."""

from pathlib import Path
from typing import Any, cast

import pytest
from fakes import ObedientPolicy
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from scripted_runs import BULLETS, ONCE, TWICE, begun, edits
from typing_extensions import TypedDict

from nslora.graph.build import build_graph, build_workflow
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import RoundDetails
from nslora.tools.errors import RunError, SettingsError
from nslora.tools.router.inputs import RouterInput
from nslora.tools.tasks.task import Task


def edit_twice(seen: RouterInput) -> str:
    return "textgrad" if seen.round < 2 else "finish"


def edit_once(seen: RouterInput) -> str:
    return "finish" if seen.round else "textgrad"


def test_a_classifier_of_ones_own_writes_a_decision_and_nothing_else(tmp_path: Path, task: Task) -> None:
    def decide(state: Any) -> dict[str, Any]:
        return {"decision": {"action": "textgrad" if state["round"] < 2 else "finish"}}

    workflow, editor = build_workflow(classify=decide), edits(ONCE, TWICE)
    run = begun(tmp_path, task, editor, strategy="lora", graph=workflow, max_rounds=3, approve="edits")
    with pytest.raises(RunError, match="waits for a person"):
        run.adapt()
    run = Run.open(run.folder, task=task, editor=editor, model=ObedientPolicy(), graph=workflow)
    with pytest.raises(RunError, match="waits for a person"):
        run.resume("accept")
    result = run.resume("reject")
    assert [(each.action, each.reason, each.demand) for each in result.rounds] == [("textgrad", "", {})] * 2
    assert cast(RoundDetails, run.show(1)).failures  # chosen for it
    other = run.fork(at=2)
    assert [each.values["round"] for each in other.history()[:1]] == [1]
    assert run.replay().same


def test_only_nodes_of_the_loop_are_replaced_and_a_strange_decision_is_told() -> None:
    with pytest.raises(SettingsError, match=r"has no node classifier, router: it has evaluate, monitor, classify"):
        build_workflow(classifier=print, router=print)


@pytest.mark.parametrize("said", [{}, Command(goto="textgrad_edit")])
def test_a_classifier_without_a_decision_is_told_before_anything_else_runs(
    tmp_path: Path, task: Task, said: Any
) -> None:
    run = begun(tmp_path, task, edits(BULLETS), graph=build_workflow(classify=lambda state: said))
    with pytest.raises(RunError, match="The classifier wrote no decision: wanted"):
        run.adapt()
    assert run.history()[0].next == ("classify",)


@pytest.mark.parametrize("decision", ["lora", {"action": "both"}])
def test_a_decision_of_another_form_is_told(tmp_path: Path, task: Task, decision: Any) -> None:
    workflow = build_workflow(classify=lambda state: {"decision": decision})
    run = begun(tmp_path, task, edits(BULLETS), graph=workflow)
    with pytest.raises(RunError, match=r"decision(\.action)?: (Input should be|Field required)"):
        run.adapt()


def test_a_strategy_may_be_given_as_the_function_that_a_module_names(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE, TWICE), strategy=edit_twice)
    assert run.workspace.settings.strategy == f"{__name__}:edit_twice"
    result = run.adapt()
    assert (len(result.rounds), result.stop) == (2, f"Strategy {__name__}:edit_twice ended the run.")
    assert len(run.fork(at=2, settings={"strategy": edit_once}).adapt().rounds) == 1
    for nameless in (lambda seen: "lora", ObedientPolicy().reply):
        with pytest.raises(SettingsError, match="stands in no module"):
            begun(tmp_path, task, edits(ONCE), "other", strategy=nameless)
    assert not (tmp_path / "other").exists()


def test_a_graph_begins_with_nothing_but_a_folder(tmp_path: Path, task: Task) -> None:
    graph = build_graph(checkpointer=InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": "mine"}}
    run, same = (begun(tmp_path, task, edits(ONCE), name, max_rounds=1, approve="edits") for name in "ab")
    asked = graph.invoke({}, config, context={"folder": str(run.folder)})  # type: ignore[arg-type]
    assert {**same.first_state(), **asked, "measured": 0}.keys() == asked.keys() | {"measured"}
    assert asked["__interrupt__"][0].value["kind"] == "textgrad"
    ended = graph.invoke(Command(resume="reject"), config, context=run.context)
    assert ended["status"] == "finished"
    report = run.report()
    for again in ({}, {"round": 1}):
        with pytest.raises(RunError, match="goes on with None"):
            graph.invoke(again, config, context=run.context)  # type: ignore[arg-type]
    assert run.report() == report
    with pytest.raises(RunError, match=r"begin with \{\} or run.first_state"):
        graph.invoke({"best_reward": 1.0}, {"configurable": {"thread_id": "b"}}, context=same.context)  # type: ignore[arg-type]


def test_a_node_behind_the_end_asks_and_is_answered(tmp_path: Path, task: Task) -> None:
    answers = []
    workflow = build_workflow().add_node("publish", lambda state: answers.append(interrupt("publish?")))
    run = begun(tmp_path, task, edits(ONCE), max_rounds=0, graph=workflow.add_edge("finish", "publish"))
    with pytest.raises(RunError, match=r"waits for a person: look at question\(\), then resume\(answer\)"):
        run.adapt()
    assert run.question() == "publish?"
    assert run.resume({"yes": True}).stop
    assert answers == [{"yes": True}]


def test_a_breakpoint_of_ones_own_graph_is_told_and_gone_on_from(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE), max_rounds=1, graph=build_workflow().compile(interrupt_before=["finish"]))
    with pytest.raises(RunError, match="stopped before finish, at a breakpoint of its graph"):
        run.adapt()
    assert run.adapt().rounds
    assert run.adapt().report == run.report()


@pytest.mark.parametrize("modes", ["nonsense", ["updates", "nonsense"]])
def test_a_stream_mode_that_there_is_not_is_refused_before_anything_runs(
    tmp_path: Path, task: Task, modes: Any
) -> None:
    run = begun(tmp_path, task, edits(ONCE), max_rounds=0)
    with pytest.raises(SettingsError, match="modes='nonsense' is no stream mode: known are values, updates"):
        next(run.stream(modes))
    assert run.state() is None
    assert [mode for mode, _ in run.stream("updates")] == ["updates"] * 3


class Project(TypedDict):
    score: float


def test_questions_reach_the_caller_of_a_parent_graph(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE, TWICE), max_rounds=2, approve="edits")
    config: RunnableConfig = {"configurable": {"thread_id": "project"}}

    def tune(project: Project) -> dict[str, float]:
        return {"score": build_graph().invoke({}, context=run.context)["best_reward"]}  # type: ignore[arg-type]

    workflow = StateGraph(Project).add_node("tune", tune).add_edge(START, "tune")
    with pytest.raises(RunError, match="no checkpointer to wait for the answer with"):
        workflow.compile().invoke({"score": 0.0})
    parent = workflow.compile(checkpointer=InMemorySaver())
    answers: list[Any] = [{"score": 0.0}, "accept", {"decisions": [{"type": "approve"}]}, "reject"]
    asked = []
    for each in answers:
        seen = parent.invoke(each if each is answers[0] else Command(resume=each), config)
        asked += [(each.value["round"], each.value["problem"][:14]) for each in seen.get("__interrupt__", ())]
    assert asked == [(1, ""), (2, ""), (2, "The answer was")]
    assert [each["person"]["answer"] for each in run.report()["rounds"]] == ["accept", "reject"]
    assert seen["score"] == run.report()["validation"]["result"]["reward"]


def test_a_run_that_asks_inside_a_parent_graph_says_how_its_question_gets_out(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE), max_rounds=1, approve="edits")

    def tune(project: Project) -> dict[str, float]:
        return {"score": run.adapt().test.result}

    parent = StateGraph(Project).add_node("tune", tune).add_edge(START, "tune").compile(checkpointer=InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": "project"}}
    with pytest.raises(RunError, match=r"waits for a person.*build_graph\(\).invoke\(\{\}, context=run.context\)"):
        parent.invoke({"score": 0.0}, config)
    assert run.question()["round"] == 1  # nothing is lost
    run.resume("reject")
    assert parent.invoke(None, config)["score"] == run.report()["test"]["result"]["all_checks"]
