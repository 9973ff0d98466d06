"""One writer, stopping and going on, and what is said where a run cannot be worked on."""

import json
import os
import shutil
import signal
import socket
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langgraph.errors import GraphDrained
from langgraph.graph import START, StateGraph
from langgraph.runtime import RunControl
from scripted_runs import results

from nslora.graph import lock as run_lock
from nslora.graph.build import build_graph
from nslora.graph.cli.stop_signals import stopping
from nslora.graph.runs.fork import fork
from nslora.graph.runs.history import line_of, past_of
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.graph.state import AdaptationState
from nslora.tools.errors import DamagedError, RunError, SettingsError
from nslora.tools.files import read_jsonl, write_json
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.tasks.task import Task
from nslora.tools.training.adapters import OPTIMIZER, WEIGHTS
from nslora.tools.training.snapshots import Snapshots
from nslora.tools.workspace.record import RUN_FILE
from nslora.tools.workspace.task_clock import CLOCK_FILE
from nslora.tools.workspace.workspace import Workspace, register

Begin = Callable[..., Run]


def stop_after(run: Run, node: str) -> None:
    """Ask the run to stop when this node has ended."""
    control = RunControl()

    def follow() -> None:
        for _, part in run.stream(("updates",), control=control):
            if node in part:
                control.request_drain("test")

    with pytest.raises(GraphDrained):
        follow()


def test_a_run_that_was_stopped_between_nodes_goes_on_and_ends_the_same(begin: Begin, finished: Run) -> None:
    run = begin()
    stop_after(run, "textgrad_edit")
    state = run.state()
    assert state is not None
    assert state["status"] == "running"
    assert results_of(run) == results(finished)


def results_of(run: Run) -> dict[str, Any]:
    Run.open(run.folder).resume()
    return results(run)


def test_a_burst_that_was_stopped_loses_no_step(begin: Begin, finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run, control = begin(), RunControl()
    save, done = Snapshots.after_step, []

    def stop_after_two(self: Snapshots, optimizer: Any, log: list[dict[str, float]]) -> None:
        save(self, optimizer, log)
        done.append(len(log))
        if done == [1, 2]:
            control.request_drain("test")

    monkeypatch.setattr(Snapshots, "after_step", stop_after_two)
    with pytest.raises(GraphDrained):
        list(run.stream(control=control))
    assert done == [1, 2]
    clock = json.loads((run.folder / CLOCK_FILE).read_text())
    write_json(run.folder / CLOCK_FILE, {**clock, "seconds": clock["seconds"] + 1000})
    list(run.stream())
    assert done == [1, 2, 3]
    assert run.report()["rounds"][2]["wall_s"] > 1000
    assert results(run) == results(finished)
    assert not any((run.folder / "progress").iterdir())


def test_a_snapshot_of_another_burst_is_no_beginning_of_this_one(begin: Begin) -> None:
    workspace = begin().workspace
    rows = tuple(TrainingRow(({"role": "user", "content": text},), "b", text, "reference") for text in "abcd")
    one, other = (TrainingJob(rows, 3, seed=seed, progress=workspace.folder / "progress" / "task") for seed in (1, 2))

    def stop(done: int, _: int, values: Any = None) -> None:
        raise GraphDrained("test")

    with pytest.raises(GraphDrained):
        workspace.train(one, stop)
    begun_anew, gone_on = workspace.train(other), workspace.train(one)
    assert begun_anew.steps_done == begun_anew.steps > 1
    assert gone_on.steps_done == gone_on.steps - 1


def test_a_finished_run_has_nothing_more_to_do(finished: Run) -> None:
    assert list(finished.stream()) == []


def test_the_stream_gives_updates_values_and_progress(begin: Begin) -> None:
    seen: dict[str, list[Any]] = {"updates": [], "values": [], "custom": []}
    run = begin(max_rounds=1, strategy="lora")
    for mode, part in run.stream(("updates", "values", "custom")):
        seen[mode].append(part)
    assert [next(iter(part)) for part in seen["updates"]] == [
        "evaluate",
        "monitor",
        "classify",
        "lora_update",
        "evaluate",
        "monitor",
        "finish",
    ]
    assert seen["values"][-1]["status"] == "finished"
    steps = [part for part in seen["custom"] if part["node"] == "lora_update"]
    assert [part["done"] for part in steps] == [1, 2, 3]
    assert set(steps[0]["values"]) == {"loss", "grad_norm", "learning_rate"}
    assert read_jsonl(run.folder / "bursts.jsonl")[0]["log"] == [part["values"] for part in steps]


def test_runs_in_threads_of_one_process_end_as_they_do_one_by_one(begin: Begin) -> None:
    def settings(seed: int) -> dict[str, Any]:
        return {
            "seed": seed,
            "strategy": "lora",
            "max_rounds": 2,
            "reuse_replies": False,
            "lora": {"rank": 2, "epochs": 6, "dropout": 0.1, "early_stop_patience": None},
        }

    def adapters(name: str, seed: int) -> list[str]:
        return [
            each["candidate"]["adapter"] for each in begin(f"{name}-{seed}", **settings(seed)).adapt().report["rounds"]
        ]

    alone = [adapters("alone", seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda seed: adapters("beside", seed), (0, 1))) == alone


def test_a_run_stays_in_its_folder_when_the_working_directory_changes(
    tmp_path: Path, keepers: Task, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = Run.create("here", task=keepers, model=str(tiny_folder("llama")), strategy="lora", max_rounds=1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.adapt()
    assert (tmp_path / "here" / "result" / "report.json").is_file()
    assert list(Path().iterdir()) == []


def test_a_second_writer_is_told_who_is_at_work(begin: Begin) -> None:
    run = begin(max_rounds=0)
    stream = run.stream()
    next(stream)
    with pytest.raises(RunError, match=rf"in use by process {os.getpid()} on .*, since 20"):
        next(Run(run.folder, run.workspace).stream())
    assert run_lock.is_locked(run.folder)
    stream.close()
    assert not run_lock.is_locked(run.folder)


def test_a_stream_or_a_thread_of_this_process_is_told_as_such_and_another_process_as_another(begin: Begin) -> None:
    run = begin(max_rounds=0)
    with run_lock.sole_writer(run.folder):
        with pytest.raises(RunError, match="this very one: close the stream that is open, or wait for"):
            run.adapt()
        note = run.folder / run_lock.HOLDER_FILE
        own = json.loads(note.read_text())
        assert (own["pid"], own["host"]) == (os.getpid(), socket.gethostname())
        for other in ({"pid": os.getpid() + 1}, {"host": "elsewhere"}):
            write_json(note, {**own, **other})
            with pytest.raises(RunError, match=r"since 20[^,]*: wait for it, or stop it\.$"):
                run.adapt()
        note.unlink()
        with pytest.raises(RunError, match=r"in use by another process: wait for it, or stop it\.$"):
            run.adapt()


def test_a_graph_that_is_run_without_its_run_is_a_writer_too(begin: Begin) -> None:
    run = begin(max_rounds=0)
    with run_lock.sole_writer(run.folder), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        build_graph().invoke(run.first_state(), run.config, context=run.context)
    assert build_graph().invoke(run.first_state(), run.config, context=run.context)["status"] == "finished"


def test_a_graph_by_hand_beside_a_run_that_streams_in_this_process_is_refused(begin: Begin) -> None:
    run = begin(max_rounds=0)
    first = run.first_state()
    stream = run.stream()
    next(stream)
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        build_graph().invoke(first, run.config, context=run.context)
    stream.close()


def test_a_parent_graph_with_a_context_of_its_own_is_told_how_to_call_this_one(begin: Begin) -> None:
    @dataclass
    class Own:
        user: str

    run = begin(max_rounds=0)
    parent = StateGraph(AdaptationState, context_schema=Own).add_node("adapt", build_graph()).add_edge(START, "adapt")
    with pytest.raises(RunError, match=r"context of another one \(Own\): .* context=run.context"):
        parent.compile().invoke(run.first_state(), run.config, context=Own("me"))


def test_a_folder_that_cannot_be_written_is_named(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_lock.FileLock, "acquire", refuse)
    with pytest.raises(RunError, match=r"Nothing can be written to .*Permission denied"):
        next(run.stream())


def test_a_full_disk_leaves_a_run_that_goes_on(begin: Begin, finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("nslora.tools.files.os.fsync", full)
        with pytest.raises((OSError, RunError), match="No space left"):
            run.adapt()
    assert results_of(run) == results(finished)


def test_the_first_signal_asks_and_is_named_in_the_exit_status() -> None:
    control, said = RunControl(), []
    before = signal.getsignal(signal.SIGTERM)
    with stopping(control, said.append) as stopper:
        os.kill(os.getpid(), signal.SIGTERM)
        assert control.drain_requested
    assert stopper.exit_status == 143
    assert "after the current step" in said[0]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_of_a_newer_version_is_left_alone(begin: Begin, tmp_path: Path) -> None:
    run = begin()
    record = json.loads((run.folder / RUN_FILE).read_text())
    write_json(run.folder / RUN_FILE, {**record, "format": 99})
    with pytest.raises(RunError, match=r"newer nslora .*upgrade"):
        Run.open(run.folder)
    record["settings"]["of_tomorrow"] = 1
    write_json(tmp_path / "copy" / RUN_FILE, record)
    with pytest.raises(RunError, match="does not take \\(of_tomorrow\\)"):
        Run.open(tmp_path / "copy")


def test_a_database_of_a_newer_version_is_left_alone(begin: Begin) -> None:
    run = begin()
    path = run.folder / "checkpoints.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(RunError, match="of a newer nslora"):
        run.adapt()
    assert path.read_bytes() == before


def test_a_database_that_is_none_is_named(begin: Begin) -> None:
    run = begin()
    (run.folder / "checkpoints.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(RunError, match=r"checkpoints\.sqlite cannot be opened"):
        run.adapt()


@pytest.mark.parametrize(
    ("what", "at"),
    [
        (f"adapters/*/{WEIGHTS}", 1),
        (f"adapters/*/{OPTIMIZER}", 1),
        ("evaluations/*.jsonl", 0),
        ("prompts/*.md", 0),
        ("decisions.jsonl", 2),
    ],
)
def test_a_damaged_file_is_named_and_left_alone_and_the_run_goes_on_from_the_round_that_is_told(
    begin: Begin, what: str, at: int
) -> None:
    run = begin(strategy="lora", max_rounds=2, reuse_replies=False)
    with run.checkpointer() as saver:
        graph, follow = build_graph(checkpointer=saver), {"context": run.context, "durability": "sync"}
        graph.invoke(run.first_state(), run.config, interrupt_after=["monitor"], **follow)
        if what.startswith("adapters"):
            graph.invoke(None, run.config, interrupt_after=["lora_update"], **follow)
        elif what.startswith("decisions"):
            graph.invoke(None, run.config, interrupt_after=["monitor"], **follow)
    for damaged in run.folder.glob(what):
        damaged.write_bytes(damaged.read_bytes()[:-9])
    before = damaged.read_bytes()
    again = Run(run.folder, register(Workspace(run.folder.resolve(), run.workspace.settings, run.workspace.task)))
    with pytest.raises(DamagedError, match=rf"{damaged.parent.name}.*nslora fork {run.folder} --at {at}"):
        again.adapt()
    assert damaged.read_bytes() == before
    assert len(fork(again, run.folder.with_name("fork"), at=at).adapt().report["rounds"]) == 2


def test_a_run_needs_a_new_folder_and_a_database_an_address(begin: Begin, finished: Run) -> None:
    with pytest.raises(RunError, match="exists already"):
        Run.create(finished.folder, task=finished.workspace.task, model=finished.workspace.settings.model)
    with pytest.raises(SettingsError, match="wanted postgresql://"):
        begin(checkpoints="mysql://somewhere")


def test_a_damaged_line_is_named_and_one_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "bursts.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert read_jsonl(path) == [{"a": 1}]
    with pytest.raises(RunError, match=r"bursts\.jsonl:2: this line is damaged"):
        read_jsonl(path, written_whole=True)
    path.write_text('{"a": \n{"a": 2}\n')
    with pytest.raises(RunError, match=r"bursts\.jsonl:1: this line is damaged"):
        read_jsonl(path)


def test_a_run_that_was_taken_back_is_not_finished_until_it_ends_again(begin: Begin) -> None:
    run = begin("one", strategy="textgrad", max_rounds=2)
    first = run.adapt().report
    with run.checkpointer() as saver:
        graph = build_graph(checkpointer=saver)
        earlier = past_of(line_of(graph, run.config), run.folder, 1)[0].config
        graph.invoke(None, {**run.config, **earlier}, context=run.context, interrupt_after=["monitor"])
    view = look(run.folder)
    assert (view.status, view.stop, len(view.rounds)) == ("stopped", "", 1)
    with pytest.raises(RunError, match="has no result yet"):
        run.report()
    again = run.adapt().report
    assert look(run.folder).status == "finished"
    assert [each["evaluation"] for each in again["rounds"]] == [each["evaluation"] for each in first["rounds"]]


@pytest.mark.parametrize("gone", ["result", "result/report.json", "result/test.jsonl", "decisions.jsonl"])
def test_a_result_that_was_removed_is_made_again(begin: Begin, gone: str) -> None:
    run = begin("one", max_rounds=1)
    first = run.adapt().report
    path = run.folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = Run.open(run.folder).adapt().report
    assert path.exists()
    assert {key: again[key] for key in ("test", "result", "stop")} == {
        key: first[key] for key in ("test", "result", "stop")
    }


def test_a_result_that_cannot_be_made_again_is_told(begin: Begin) -> None:
    run = begin("one", max_rounds=0)
    with run.checkpointer() as saver:
        build_graph(checkpointer=saver).invoke(run.first_state(), run.config, context=run.context, durability="exit")
    shutil.rmtree(run.folder / "result")
    with pytest.raises(RunError, match="has lost its result, and the checkpoint"):
        run.adapt()


def test_a_run_that_was_taken_back_from_a_question_waits_no_more(begin: Begin) -> None:
    run = begin("waits", approve="edits", strategy="textgrad", max_rounds=1)
    with pytest.raises(RunError, match="waits for a person"):
        run.adapt()
    with run.checkpointer() as saver:
        graph = build_graph(checkpointer=saver)
        earlier = past_of(line_of(graph, run.config), run.folder, 1)[0].config
        graph.invoke(None, {**run.config, **earlier}, context=run.context, interrupt_after=["classify"])
    assert look(run.folder).status == "stopped"


def test_a_run_that_has_ended_goes_on_for_more_rounds_and_says_that_test_was_looked_at_twice(begin: Begin) -> None:
    run = begin(max_rounds=1)
    first = run.adapt()
    assert first.report["test_looks"] == 1
    with pytest.raises(RunError, match=r"has done 1 rounds: max_rounds=1 allows no further one"):
        run.resume(max_rounds=1)
    again = Run.open(run.folder).resume(max_rounds=3)
    assert [each.action for each in again.rounds] == ["textgrad", "textgrad", "lora"]
    assert again.report["rounds"][0] == first.report["rounds"][0]
    assert (again.report["test_looks"], again.report["settings"]["max_rounds"]) == (2, 3)
    (aside,) = run.folder.glob("result.*/report.json")
    assert json.loads(aside.read_text()) == first.report
    assert Run.open(run.folder).report() == again.report
