"""The state is the truth, the folder shows one branch of it: time travel in place, decisions overruled, lost rounds."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from scripted_runs import BULLETS, ONCE, THRICE, TWICE, begun, edits
from typer.testing import CliRunner

from nslora.graph.build import Graph, build_graph
from nslora.graph.cli.app import app
from nslora.graph.projection import same_rounds, show_rounds, stamp_of
from nslora.graph.runs.history import line_of, past_of
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.tools.errors import LostRoundsError, RunError
from nslora.tools.files import read_jsonl, write_jsonl
from nslora.tools.prompt import Prompt
from nslora.tools.tasks.task import Task


@contextmanager
def graph_of(run: Run) -> Iterator[Graph]:
    with run.checkpointer() as saver:
        yield build_graph(checkpointer=saver)


def prompts(records: Any) -> list[str]:
    return [each["candidate"]["prompt"] for each in records]


def test_a_branch_in_place_takes_the_folder_over_and_the_older_result_is_set_aside(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE, TWICE), max_rounds=2)
    first = run.adapt().report
    made_from = stamp_of(run.folder)
    assert made_from is not None
    with graph_of(run) as graph:
        past = [each for each in line_of(graph, run.config) if "monitor" in each.next][-2]
        verdict = {**past.values["verdict"], "kept": True}
        branch = graph.update_state(past.config, {"verdict": verdict}, as_node="evaluate")
        # Nothing ran yet, and the newest branch has no result.
        with pytest.raises(RunError, match="no result yet on its newest branch"):
            run.report()
        ended = graph.invoke(None, {**run.config, **branch}, context=run.context)
    assert len(ended["rounds"]) == len(first["rounds"])
    report = run.report()
    assert (report["result"], first["result"]) == (ended["rounds"][0]["candidate"], first["start"])
    assert report["rounds"] == ended["rounds"] == read_jsonl(run.folder / "decisions.jsonl")
    assert [each.kept for each in look(run.folder).rounds] == [True, False]
    assert run.adapt().report == report
    aside = run.folder / f"result.{made_from.checkpoint}" / "report.json"
    assert json.loads(aside.read_text()) == first
    with graph_of(run) as graph:
        config: Any = {"configurable": {"thread_id": run.thread, "checkpoint_id": made_from.checkpoint}}
        assert graph.get_state(config).next == ("finish",)


def test_a_branch_with_the_same_rounds_and_another_end_is_another(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first = run.adapt().report
    with graph_of(run) as graph:
        end = next(each for each in line_of(graph, run.config) if "finish" in each.next)
        branch = graph.update_state(end.config, {"best": end.values["start"]}, as_node="monitor")
        with pytest.raises(RunError, match="no result yet"):
            run.report()
        graph.invoke(None, {**run.config, **branch}, context=run.context)
    report = run.adapt().report
    assert report["rounds"] == first["rounds"]
    assert (report["result"], report["test_looks"]) == (report["start"], 2)
    assert report["result"] != first["result"]


def test_a_finished_run_whose_newest_branch_was_not_run_goes_on_with_it(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE, TWICE), max_rounds=2)
    run.adapt()
    with graph_of(run) as graph:
        past = past_of(line_of(graph, run.config), run.folder, 1)[0].config
        graph.update_state(past, {"stop": "stopped by hand"}, as_node="monitor")
    told = CliRunner().invoke(app, ["report", str(run.folder)])
    assert "no result yet on its newest branch" in str(told.exception)
    assert (run.adapt().report["rounds"], run.report()["stop"]) == ([], "stopped by hand")
    assert look(run.folder).rounds == ()


def test_records_with_a_number_that_is_none_are_the_same_again(tmp_path: Path) -> None:
    rounds: Any = [{"grad_norms": [math.nan]}]
    show_rounds(tmp_path, rounds)
    assert same_rounds(read_jsonl(tmp_path / "decisions.jsonl"), rounds)
    assert not same_rounds([], rounds)


@pytest.mark.parametrize(("proposed", "kept"), [(ONCE, True), (BULLETS, False)])
def test_one_update_overrules_keep_or_drop_and_the_final_choice_follows(
    tmp_path: Path, task: Task, proposed: Prompt, kept: bool
) -> None:
    run = begun(tmp_path, task, edits(proposed, TWICE), max_rounds=2)
    with graph_of(run) as graph:
        graph.invoke(run.first_state(), run.config, context=run.context, interrupt_after=["textgrad_edit"])
        graph.invoke(None, run.config, context=run.context, interrupt_after=["evaluate"])
        verdict = graph.get_state(run.config).values["verdict"]
        assert (verdict["kept"], verdict["by_test"]) == (not kept, not kept)
        graph.update_state(run.config, {"verdict": {**verdict, "kept": kept}}, as_node="evaluate")
        assert graph.get_state(run.config).next == ("monitor",)
    report = run.adapt().report
    first = report["rounds"][0]
    assert (first["kept"], first["overruled"]) == (kept, True)
    assert first["verdict"].startswith("kept by hand (" if kept else "dropped by hand (")
    assert report["result"] == (first["candidate"] if kept else report["start"])
    assert "overruled" not in report["rounds"][1]


def test_an_update_that_failed_cannot_be_kept_by_hand(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(Prompt("")), max_rounds=1)
    with graph_of(run) as graph:
        graph.invoke(run.first_state(), run.config, context=run.context, interrupt_after=["textgrad_edit"])
        graph.invoke(None, run.config, context=run.context, interrupt_after=["evaluate"])
        verdict = graph.get_state(run.config).values["verdict"]
        graph.update_state(run.config, {"verdict": {**verdict, "kept": True}}, as_node="evaluate")
    with pytest.raises(RunError, match="says kept, but its update failed"):
        run.adapt()


def test_one_update_overrules_the_router(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE), max_rounds=2)
    with graph_of(run) as graph:
        graph.invoke(run.first_state(), run.config, context=run.context, interrupt_after=["classify"])
        decision = graph.get_state(run.config).values["decision"]
        ends = {"decision": {**decision, "action": "finish", "reason": "enough"}}
        graph.update_state(run.config, ends, as_node="classify")
    assert run.adapt().stop == "enough"


def shortened(saver: BaseCheckpointSaver[Any], run: Run) -> None:
    """Leave only the newest checkpoint of the run, as pruning and expiring savers do."""
    newest = saver.get_tuple(run.config)
    assert newest is not None
    saver.delete_thread(run.thread)
    config: Any = {"configurable": {"thread_id": run.thread, "checkpoint_ns": ""}}
    saver.put(config, newest.checkpoint, newest.metadata, newest.checkpoint["channel_versions"])


def test_lost_rounds_are_told_and_brought_back_by_the_command_that_is_told(tmp_path: Path, task: Task) -> None:
    whole = begun(tmp_path, task, edits(ONCE, TWICE, THRICE), "whole").adapt().report
    run = begun(tmp_path, task, edits(ONCE, TWICE, THRICE), "pruned")
    with graph_of(run) as graph:
        graph.invoke(run.first_state(), run.config, context=run.context, interrupt_before=["monitor"])
        for _ in range(2):
            graph.invoke(None, run.config, context=run.context, interrupt_before=["monitor"])
        shortened(graph.checkpointer, run)  # type: ignore[arg-type]
    told = (run.folder / "decisions.jsonl").read_bytes()
    with pytest.raises(LostRoundsError, match=r"hold 0 of 1 rounds.*nslora resume \S+ --restore"):
        run.adapt()
    with pytest.raises(LostRoundsError), graph_of(run) as graph:
        graph.invoke(None, run.config, context=run.context)
    with pytest.raises(LostRoundsError, match="has lost the checkpoints before round 2"):
        run.fork(at=2)
    assert (run.folder / "decisions.jsonl").read_bytes() == told
    run.restore()
    again = run.adapt().report
    assert prompts(again["rounds"]) == prompts(whole["rounds"])
    assert again["result"] == whole["result"]


def test_rounds_of_another_branch_are_not_brought_back(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    run.adapt()
    with run.checkpointer() as saver:
        shortened(saver, run)
    records = read_jsonl(run.folder / "decisions.jsonl")
    for wrong in ([], [*records, *records, *records], [{**records[0], "kept": False}]):
        write_jsonl(run.folder / "decisions.jsonl", wrong)
        with pytest.raises(RunError, match="cannot be brought back"):
            run.restore()
    write_jsonl(run.folder / "decisions.jsonl", [*records, records[0]])  # as a kill in `monitor` leaves it
    run.restore()
    assert (run.state() or {})["rounds"] == records
    (run.folder / "checkpoints.sqlite").unlink()
    with pytest.raises(RunError, match="no checkpoint left to bring records back into"):
        run.restore()


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_a_second_thread_does_not_write_over_the_first(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE, TWICE), max_rounds=1)
    start, mine = run.first_state(), build_graph(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "mine"}}
    for stop in (["evaluate"], ["monitor"], None):  # before its first round, after it, finished
        with graph_of(run) as graph:
            begins = graph.get_state(run.config).values == {}
            graph.invoke(start if begins else None, run.config, context=run.context, interrupt_after=stop)
        before = files_of(run.folder)
        with pytest.raises(RunError, match=r"shows the thread nslora-.* give each thread a folder of its own"):
            mine.invoke(start, config, context=run.context)
        for given in ({}, run.config):  # the run's own thread id, and no checkpointer
            with pytest.raises(RunError, match="this one is without a checkpointer"):
                build_graph().invoke(start, given, context=run.context)
        assert files_of(run.folder) == before
    (run.folder / "shown.json").unlink()  # as version 0.1.0 left a run
    with pytest.raises(RunError, match=r"delete shown\.json and decisions\.jsonl"):
        mine.invoke(start, config, context=run.context)
    (run.folder / "decisions.jsonl").unlink()
    ended = mine.invoke(start, config, context=run.context)
    assert (ended["status"], len(list(run.folder.glob("result.*")))) == ("finished", 1)


# What update_state is given, as which node, and what is told: by an edge before it is written, or by the next node.
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"decision": {"action": "lara"}}, "classify", "decision.action: Input should be 'lora', 'textgrad' or"),
    ({"decision": "lora"}, "classify", r"decision: .*dictionary \(came: 'lora'\)"),
    ({"stop": 1}, "monitor", "stop: Input should be a valid string"),
    ({"approve": "edit"}, "textgrad_edit", "approve: Input should be 'nothing'"),
    ({"proposal": {"kind": "lora"}}, "textgrad_edit", r"proposal\.wall_s: Field required"),
    ({"verdict": {"kept": "no", "reason": "", "numbers": {}, "by_test": True}}, "evaluate", r"verdict\.kept.*boolean"),
    ({"kept": {"prompt": "b" * 16}}, "evaluate", r"kept\.adapter: Field required"),
    ({"best": None}, "evaluate", "best: Input should be a valid dictionary"),
    ({"best_reward": "high"}, "evaluate", "best_reward: Input should be a valid number"),
    ({"round": 7}, "evaluate", "hold 0 of 7 rounds"),
    ({"rounds": [{"round": 1}]}, "evaluate", r"rounds\.0\.wall_s: Field required"),
    ({"status": "done"}, "evaluate", "status: Input should be 'running'"),
    ({"measured": {}}, "evaluate", r"measured\.key: Field required"),
    ({"start": "base"}, "evaluate", "start: Input should be a valid dictionary"),
    ({"remade": {"prompt": 1, "rows": 1, "waiting": True}}, "evaluate", r"remade\.prompt"),
    ({"editor_failures": "2"}, "evaluate", "editor_failures: Input should be a valid integer"),
    ({"signal": {"lora": 1}}, "evaluate", r"signal\.lora"),
    ({"proposal": None}, "approve", "Nothing waits to be evaluated"),
]


def test_a_wrong_value_in_the_state_is_refused_before_anything_is_lost(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE), max_rounds=1)
    run.adapt()
    past = next(each for each in run.history() if "monitor" in each.next)
    before = files_of(run.folder)

    def changed(graph: Graph, given: dict[str, Any], node: str) -> None:
        branch = graph.update_state(past.config, given, as_node=node)
        graph.invoke(None, {**run.config, **branch}, context=run.context)

    with graph_of(run) as graph:
        for given, node, told in WRONG:
            newest = graph.get_state(run.config)
            with pytest.raises(RunError, match=told):
                changed(graph, given, node)
            if node not in ("evaluate", "approve"):
                assert graph.get_state(run.config) == newest
    written = {path.name for path, content in files_of(run.folder).items() if content != before.get(path)}
    assert written <= {"checkpoints.sqlite", "checkpoints.sqlite-wal", "checkpoints.sqlite-shm"}


def test_the_shell_brings_lost_rounds_back(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    run.adapt()
    with run.checkpointer() as saver:
        shortened(saver, run)
    monkeypatch.setattr("nslora.graph.cli.runs.opened", lambda *_, **__: run)
    lost = CliRunner().invoke(app, ["resume", str(run.folder)])
    assert "--restore" in str(lost.exception)
    found = CliRunner().invoke(app, ["resume", str(run.folder), "--restore"])
    assert found.exit_code == 0, found.output
    state = run.state()
    assert state is not None
    assert len(state["rounds"]) == 1
