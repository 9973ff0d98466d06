"""Trackers follow a run by its stream: each thing once, over kills; and nothing that they do changes the run."""

import asyncio
import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from fakes import CANARY
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from scripted_runs import results
from tracked import STEPS, RecordingTracker, SteppingPolicy, tracked_run

from nslora.graph.build import build_graph
from nslora.graph.runs.run import Run
from nslora.graph.tracking.following import following
from nslora.graph.tracking.journal import Journal
from nslora.graph.tracking.tracker import Entry
from nslora.tools.errors import SettingsError
from nslora.tools.tasks.task import Task
from nslora.tools.training.adapters import CONFIG, WEIGHTS


@pytest.fixture(autouse=True)
def _nothing_tracked() -> None:
    RecordingTracker.forget()


def numbers(run: str = "tracked-0") -> list[int]:
    return [each.number for each in RecordingTracker.entries[run]]


def steps(run: str = "tracked-0") -> list[int]:
    return [step for step, _ in RecordingTracker.series("train/loss_nats", run)]


def test_a_tracker_gets_steps_evaluations_decisions_costs_and_artefacts(tmp_path: Path, keepers: Task) -> None:
    run = tracked_run(tmp_path / "run", keepers)
    run.adapt()
    told, seen = RecordingTracker.known[0], RecordingTracker.series
    assert (told.name, told.known, told.params["lora.rank"], told.params["task.hash"]) == (
        "run",
        None,
        "8",
        keepers.hash,
    )
    assert numbers() == list(range(1, len(numbers()) + 1))
    assert seen("train/loss_nats") == [(step, 1 / step) for step in range(1, 2 * STEPS + 1)]
    assert [step for step, _ in seen("evaluation/reward")] == [0, 1, 2, 3]
    assert seen("round/lora") == [(1, 0.0), (2, 1.0), (3, 1.0)]
    report = run.report()
    assert (
        seen("cost/generated_tokens")[-1][1] + report["cost"]["test_generated_tokens"]
        == (report["cost"]["generated_tokens"])
    )
    assert seen("result/test/gain/reward") == [(3, report["test"]["gain"]["reward"])]
    reasons = [text for each in RecordingTracker.entries["tracked-0"] if (text := each.texts.get("round/reason"))]
    assert reasons == [each["reason"] for each in report["rounds"]]
    assert RecordingTracker.files["result/prompt.md:prompt.md"] == (run.folder / "result" / "prompt.md").read_text()
    names = {name.partition(":")[0] for name in RecordingTracker.files}
    assert {f"prompts/{each['candidate']['prompt']}.md" for each in report["rounds"]} <= names
    assert RecordingTracker.ended == ["finished"]


def test_a_stopped_run_goes_on_in_the_same_run_of_its_tracker(tmp_path: Path, keepers: Task) -> None:
    tracked_run(tmp_path / "whole", keepers).adapt()
    whole = [(each.axis, each.step, dict(each.metrics).keys()) for each in RecordingTracker.entries["tracked-0"]]
    for stop, tells in ((9, True), (14, False)):
        RecordingTracker.forget()
        RecordingTracker.tells = tells
        run, control = tracked_run(tmp_path / f"stopped-{stop}", keepers), RunControl()
        events = enumerate(run.stream(control=control), 1)
        with pytest.raises(GraphDrained):
            any(control.request_drain("enough") for number, _ in events if number == stop)
        assert RecordingTracker.ended == ["stopped"]
        with (run.folder / "tracking" / "events.jsonl").open("a") as file:
            file.write('{"key": "cut off')
        tracked_run(run.folder, keepers).adapt()
        assert [each.known for each in RecordingTracker.known] == [None, "tracked-0"]
        found = [(each.axis, each.step, dict(each.metrics).keys()) for each in RecordingTracker.entries["tracked-0"]]
        assert found == whole
        assert RecordingTracker.ended == ["stopped", "finished"]


def test_what_no_event_told_is_taken_from_the_records(
    tmp_path: Path, keepers: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SteppingPolicy, "untold", 2)  # as after a kill between a step and its event
    tracked_run(tmp_path / "run", keepers).adapt()
    late = [1, *range(3, STEPS + 1), 2]
    assert steps() == [*late, *(STEPS + step for step in late)]
    assert RecordingTracker.series("train/loss_nats")[STEPS - 1] == (2, 1 / 2)


class Failing(RecordingTracker):
    """Fails at every call until it is told to work; its message holds a key."""

    works = False

    def log(self, entries: Sequence[Entry]) -> None:
        if not type(self).works:
            raise ConnectionError(f"no route to https://someone:{CANARY}@tracker")
        super().log(entries)


class Hanging(RecordingTracker):
    """Never answers."""

    def log(self, entries: Sequence[Entry]) -> None:
        time.sleep(600)


def test_a_tracker_that_fails_or_hangs_is_named_once_and_gets_the_rest_later(
    tmp_path: Path, keepers: Task, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tracked_run(tmp_path / "plain", keepers, track=())
    plain.adapt()
    monkeypatch.setattr(Failing, "works", False)
    run = tracked_run(
        tmp_path / "run", keepers, track=[Failing, Hanging, RecordingTracker], tracking={"timeout_s": 0.5}
    )
    began = time.monotonic()
    run.adapt()
    took = time.monotonic() - began
    assert results(run) == results(plain)
    assert took < plain.report()["wall_s"] + 5
    said = [each.getMessage() for each in caplog.records if each.name == "nslora.tracking"]
    assert len(said) == 2
    assert any("Failing fails (ConnectionError: no route to https://[secret]@tracker)" in each for each in said)
    assert any("Hanging has not" in each for each in said)
    assert all(f"nslora resume {run.folder}" in each for each in said)
    assert not (tmp_path / "plain" / "tracking").exists()
    monkeypatch.setattr(Failing, "works", True)
    monkeypatch.setattr(Hanging, "log", RecordingTracker.log)
    there = {key: len(entries) for key, entries in RecordingTracker.entries.items()}
    assert list(Run.open(run.folder, task=keepers, model=SteppingPolicy(run.folder / "adapters")).stream()) == []
    assert sorted(there.values())[:2] == [0, 0]
    assert all(numbers(key) == list(range(1, max(there.values()) + 1)) for key in there)


def test_nothing_secret_is_sent(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracked_run(tmp_path / "run", task)
    run.adapt()
    RecordingTracker.forget()
    shutil.rmtree(run.folder / "tracking")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "plain words 7")
    said = [tmp_path / "models", "plain words 7", f"https://me:{CANARY}@host/", "https://me@host/", CANARY]
    (run.folder / "result" / "report.html").write_text("\n".join(map(str, said)))
    list(run.stream())  # of the run's end, the tracker is told anew
    sent = "".join([*RecordingTracker.files.values(), *RecordingTracker.known[0].params.values()])
    assert "~/models\n[secret]\nhttps://[secret]@host/\nhttps://[secret]@host/\n[secret]" in sent
    assert RecordingTracker.known[0].params["task.source"].startswith("~/")
    for secret in (CANARY, str(tmp_path), "plain words 7", "me@"):
        assert secret not in sent


def test_trackers_are_settings(tmp_path: Path, keepers: Task) -> None:
    for track, said in (("mlfow", "No tracker 'mlfow'; known are mlflow"), ("nowhere:Tracker", "cannot be loaded")):
        with pytest.raises(SettingsError, match=said):
            tracked_run(tmp_path / "run", keepers, track=track)
    for track in (lambda: None, [RecordingTracker()]):
        with pytest.raises(SettingsError, match=r"stands in no module|valid string"):
            tracked_run(tmp_path / "run", keepers, track=track)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, keepers: Task, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nslora.graph.tracking.tracker.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=rf"{name} needs a package: pip install 'nslora\[{name}\]'\."):
        tracked_run(tmp_path / "run", keepers, track=f"{name}, tracked:RecordingTracker")


def test_a_fork_is_tracked_by_itself_and_a_replay_not_at_all(tmp_path: Path, keepers: Task) -> None:
    run = tracked_run(tmp_path / "run", keepers)
    run.adapt()
    other = run.fork(at=3)
    other.adapt()
    assert sorted(RecordingTracker.entries) == ["tracked-0", "tracked-1"]
    assert [step for step, _ in RecordingTracker.series("round/kept", "tracked-1")] == [1, 2, 3]
    assert RecordingTracker.known[1].params["origin.round"] == "3"
    run.replay()
    assert len(RecordingTracker.known) == 2


def test_a_branch_in_place_is_told_beside_the_first_one(tmp_path: Path, keepers: Task) -> None:
    run = tracked_run(tmp_path / "run", keepers)
    run.adapt()
    with run.checkpointer() as saver:
        past = next(each for each in run.history() if each.next == ("lora_update",))
        decision = {**past.values["decision"], "action": "textgrad"}
        build_graph(checkpointer=saver).update_state(past.config, {"decision": decision}, as_node="classify")
    run.adapt()
    assert RecordingTracker.series("round/lora") == [(1, 0.0), (2, 1.0), (3, 1.0), (3, 0.0)]
    assert steps() == list(range(1, 2 * STEPS + 1))
    with closing(Journal(run.folder)) as journal:  # as if round 3 were trained on other rows
        journal.forget(3)
        journal.add_step(3, 1, {"train/loss_nats": 0.5})
        journal.add_step(3, 1, {"train/loss_nats": 0.5})
    list(run.stream())
    assert steps() == list(range(1, 2 * STEPS + 2))


def test_an_awaited_run_is_tracked_alike_and_only_wanted_modes_are_yielded(tmp_path: Path, keepers: Task) -> None:
    async def main() -> set[str]:
        run = tracked_run(tmp_path / "run", keepers)
        return {mode async for mode, _ in run.astream(("values",))}

    assert asyncio.run(main()) == {"values"}
    assert steps() == list(range(1, 2 * STEPS + 1))
    assert RecordingTracker.ended == ["finished"]


def test_a_run_whose_journal_cannot_be_written_goes_on(
    tmp_path: Path, keepers: Task, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracked_run(tmp_path / "run", keepers)
    (run.folder / "tracking").write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        run.adapt()
    assert "The run is tracked no longer: FileExistsError" in caplog.text
    assert run.report()["rounds"]


def test_a_run_that_ended_before_is_told_whole_with_its_kept_adapters(tmp_path: Path, keepers: Task) -> None:
    run = tracked_run(tmp_path / "run", keepers, track=())
    run.adapt()
    state = run.state()
    assert state is not None
    state["rounds"] = [{**each, "kept": True} for each in state["rounds"]]  # type: ignore[typeddict-item]
    kept = [each["candidate"]["adapter"] for each in state["rounds"] if each["action"] == "lora"]  # type: ignore[index]
    (run.folder / "adapters" / str(kept[0]) / "optimizer.safetensors").write_text("stays here")
    with following(run.workspace, lambda: state, {"late": RecordingTracker()}):
        pass
    assert steps() == list(range(1, 2 * STEPS + 1))
    files = {name for name in RecordingTracker.files if name.startswith("adapters/")}
    assert files == {f"adapters/{each}:{file}" for each in kept for file in (WEIGHTS, CONFIG)}
    assert RecordingTracker.ended == ["finished"]
