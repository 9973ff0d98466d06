"""Forks, replays and comparisons: another way from a round, the same way again, and side by side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edits import StructuredChat
from fakes import FakePolicy
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from typer.testing import CliRunner

from nslora.graph.build import build_graph
from nslora.graph.cli.app import app
from nslora.graph.runs.compare import compare
from nslora.graph.runs.fork import fork, merged
from nslora.graph.runs.view import look
from nslora.graph.runs.replay import differences, replay
from nslora.graph.runs.run import Run
from nslora.tools.errors import NsloraError, RunError
from nslora.tools.files import read_json, sha256_of_file
from nslora.tools.workspace.workspace import _LABS
from nslora.tools.policy import Policy
from nslora.tools.prompt import Prompt
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.graph.runs.copy_files import copy_records
from nslora.tools.testing.scripted_chat import ScriptedChat, improved
from nslora.tools.tasks.task import Task, load_task, task_from_rows
from nslora.tools.testing.tiny_model import write_tiny_model
from nslora.tools.testing.tiny_task import PLACES


def fingerprint(folder: Path) -> dict[str, str]:
    """Hash of every file of a run; SQLite's side files come and go with its readers."""
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.endswith(("-shm", "-wal", ".lock"))}


def test_a_fork_takes_another_way_and_leaves_the_original_alone(finished: Run, tmp_path: Path) -> None:
    before = fingerprint(finished.folder)
    head = finished.state()
    other = fork(finished, tmp_path / "fork", at=3, action="textgrad", settings={"lora": {"rank": 2}})
    assert other.lab.settings.lora.rank == 2
    report = other.adapt()
    assert [each["action"] for each in report["rounds"]] == ["textgrad", "textgrad", "textgrad"]
    assert report["rounds"][2]["reason"].startswith("Chosen by hand, in a fork; the strategy said: lora")
    assert report["rounds"][:2] == finished.report()["rounds"][:2]
    origin = look(other.folder).origin
    assert origin is not None
    assert (origin["run"], origin["kind"], origin["round"], origin["action"]) == ("finished", "fork", 3, "textgrad")
    assert fingerprint(finished.folder) == before
    assert finished.state() == head


def test_a_finished_run_goes_on_where_a_fork_allows_more_rounds(finished: Run, tmp_path: Path) -> None:
    other = fork(finished, tmp_path / "longer", at=4, action="textgrad", settings={"max_rounds": 4})
    assert [each["action"] for each in other.adapt()["rounds"]] == ["textgrad", "textgrad", "lora", "textgrad"]


def test_a_round_that_never_was_cannot_be_forked(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="never came to round 9"):
        fork(finished, tmp_path / "none", at=9)
    assert not (tmp_path / "none").exists()


def test_a_replay_calls_nobody_trains_nothing_and_comes_out_the_same(
        finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        pytest.fail("a replay generated or trained")

    policy: Policy = finished.lab.policy
    monkeypatch.setattr(type(policy), "generate", nobody)
    monkeypatch.setattr(type(policy), "train", nobody)
    found = replay(finished, tmp_path / "replay")
    assert found.same, found.differences
    assert found.rounds == 3
    assert replay(finished, tmp_path / "from-3", begin_at=3).rounds == 1


def test_a_replay_that_trains_again_gets_the_same_hash(finished: Run, tmp_path: Path) -> None:
    found = replay(finished, tmp_path / "again", retrain=True, begin_at=3)
    assert found.same, found.differences


def test_what_came_out_otherwise_is_told(finished: Run, begin: Callable[..., Run]) -> None:
    other = begin(max_rounds=1, strategy="textgrad", seed=3)
    other.adapt()
    told = differences(look(finished.folder), look(other.folder))
    assert told[0] == "1 rounds, not 3"
    assert any(each.startswith("stop was 'round limit of 3 reached'") for each in told)


def test_runs_are_compared_question_by_question(finished: Run, begin: Callable[..., Run]) -> None:
    other = begin("other", max_rounds=0)
    other.adapt()
    comparison = compare([finished.folder, other.folder])
    assert comparison.questions == 6
    mean, low, high = comparison.gains[0].reward
    assert low <= mean <= high
    assert mean == pytest.approx(comparison.runs[1].reward - comparison.runs[0].reward)
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["compare", str(finished.folder), str(other.folder)])
    assert "gain in all checks over the first" in shown.output
    assert comparison.one_task
    assert "another yardstick" not in shown.output


def test_runs_under_another_reward_are_compared_with_a_note(finished: Run, begin: Callable[..., Run], tmp_path: Path,
                                                            tiny_folder: Callable[..., Path]) -> None:
    task = load_task(finished.lab.task.source, combine="all")
    other = Run.create(tmp_path / "all", task=task, model=str(tiny_folder()), max_rounds=0,
                       device={"threads": 1, "device": "cpu"})
    other.adapt()
    assert not compare([finished.folder, other.folder]).one_task
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["compare", str(finished.folder), str(other.folder)])
    assert "another yardstick" in shown.output


def test_a_fork_asks_another_server_anew(finished: Run, tmp_path: Path) -> None:
    elsewhere = {"editing": {"structured": "never"}}
    assert (fork(finished, tmp_path / "same", at=1).folder / "editor.jsonl").exists()
    assert not (fork(finished, tmp_path / "other", at=1, settings=elsewhere).folder / "editor.jsonl").exists()


def test_a_record_that_names_a_folder_elsewhere_links_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "here" / "source", tmp_path / "there" / "target"
    for folder in (source / "adapters", target / "adapters", tmp_path / "here" / "secret"):
        folder.mkdir(parents=True)
    (tmp_path / "here" / "secret" / "file").write_text("x")
    (source / "bursts.jsonl").write_text('{"adapter": "../../secret"}\n')
    copy_records(source, target, editor=False, bursts=True)
    assert not (tmp_path / "there" / "secret").exists()


def test_an_unfinished_run_has_nothing_to_compare(finished: Run, begin: Callable[..., Run]) -> None:
    with pytest.raises(RunError, match="no test scores: let it finish"):
        compare([finished.folder, begin().folder])


def test_settings_are_merged_group_by_group() -> None:
    old = {"seed": 0, "lora": {"rank": 8, "alpha": 16.0}}
    assert merged(old, {"lora": {"rank": 4}}) == {"seed": 0, "lora": {"rank": 4, "alpha": 16.0}}


def test_a_run_with_a_chat_model_object_is_replayed_and_forked_from_the_shell_without_it(
        begin: Callable[..., Run]) -> None:
    run = begin(editor=RuleEditor(), strategy="textgrad", max_rounds=1)
    run.adapt()
    _LABS.pop(run.folder.resolve())     # as another process finds it
    shell = CliRunner(env={"COLUMNS": "160"})
    assert "came out the same" in shell.invoke(app, ["replay", str(run.folder)]).output
    _LABS.pop(run.folder.resolve())
    with pytest.raises(RunError, match="was a chat model object"):
        Run.open(run.folder)
    forked = shell.invoke(app, ["fork", str(run.folder), "--at", "1", "--editor", "rules"])
    assert forked.exit_code == 0, forked.output
    assert look(run.folder.with_name("run-fork1")).settings["editor"] == "rules"


def test_a_fork_is_checked_before_anything_is_written(finished: Run, tmp_path: Path) -> None:
    for settings, editor, at, words in (({"strategy": "bogus"}, None, 1, "bogus"), ({}, "no-such-editor", 1, "no-such"),
                                        ({"model": "elsewhere"}, None, 1, "begins at 0"), ({}, None, -1, "Round -1"),
                                        ({"device": {"dtype": "bfloat16"}}, None, 1, "begins at 0")):
        with pytest.raises(NsloraError, match=words):
            fork(finished, tmp_path / "none", at=at, editor=editor, settings=settings)
        assert not (tmp_path / "none").exists()


def test_a_fork_from_the_first_evaluation_may_have_another_model(
        finished: Run, tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    other = fork(finished, tmp_path / "other", at=0, settings={"model": str(tiny_folder("gpt2")), "max_rounds": 1,
                                                               "lora": {"top_blocks": 2}})
    other.adapt()
    facts = read_json(other.folder / "policy.json")
    assert facts["fingerprint"] == other.lab.policy.fingerprint != finished.lab.policy.fingerprint


def test_a_forced_action_is_replayed(finished: Run, tmp_path: Path) -> None:
    forced = fork(finished, tmp_path / "forced", at=2, action="textgrad", settings={"max_rounds": 2})
    forced.adapt()
    found = replay(forced, tmp_path / "again")
    assert found.same, found.differences
    assert found.rounds == 1        # of the two, the first is the original's
    assert replay(found.run, tmp_path / "once more").same
    later = fork(forced, tmp_path / "later", at=3, settings={"max_rounds": 3})
    later.adapt()
    assert replay(later, tmp_path / "later again").same


def test_a_replay_refuses_other_weights(finished: Run, tmp_path: Path, tiny_folder: Callable[..., Path],
                                        begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    task = finished.lab.task
    run = Run.create(tmp_path / "run", task=task, model=str(model), strategy="textgrad", max_rounds=1,
                     device={"threads": 1, "device": "cpu"})
    run.adapt()
    write_tiny_model(model, seed=1)
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path / "empty"))
    with pytest.raises(RunError, match="is not the one"):
        replay(run, tmp_path / "again", begin_at=0)


@pytest.mark.parametrize("answer", [{"answer": "reject"}, {"answer": "accept"},
                                    {"answer": "rewrite", "prompt": Prompt(system="Be short.").render()}])
def test_what_a_person_said_is_replayed(begin: Callable[..., Run], tmp_path: Path, answer: dict[str, str]) -> None:
    run = begin(approve="edits", strategy="textgrad", max_rounds=1)
    with pytest.raises(RunError, match="waits"):
        run.adapt()
    run.resume(answer)
    found = replay(run, tmp_path / "again")
    assert found.same, found.differences


def test_caps_on_cost_and_time_are_no_hindrance_to_a_replay(begin: Callable[..., Run], tmp_path: Path) -> None:
    run = begin(max_rounds=2, max_seconds=600, editing={"max_cost": 1.0})
    run.adapt()
    found = replay(run, tmp_path / "again")
    assert found.same, found.differences


def test_a_state_that_was_changed_by_hand_is_named_where_a_replay_differs(begin: Callable[..., Run],
                                                                           tmp_path: Path) -> None:
    run = begin(max_rounds=1, strategy="lora")
    control = RunControl()

    def until_classified() -> None:
        for _, part in run.stream(control=control):
            if "classify" in part:
                control.request_drain("test")

    with pytest.raises(GraphDrained):
        until_classified()
    with run.checkpointer() as saver:
        graph = build_graph(saver)
        decision = graph.get_state(run.config).values["decision"]
        graph.update_state(run.config, {"decision": {**decision, "action": "textgrad"}}, as_node="classify")
    assert run.adapt()["rounds"][0]["action"] == "textgrad"
    found = replay(run, tmp_path / "again")
    assert "changed by hand (update_state)" in found.differences[0]
    assert any("action was 'textgrad', is 'lora'" in each for each in found.differences)


def test_an_unfinished_run_is_not_replayed(begin: Callable[..., Run], tmp_path: Path) -> None:
    run = begin()
    with pytest.raises(RunError, match="no result yet"):
        replay(run, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_fork_goes_on_with_what_was_kept_as_it_is(own_cache: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.jsonl"
    anchor.write_text('{"question": "Who rows the boat?", "reference": "zz"}\n')
    splits = {split: [{"question": f"{asked} {place}", "reference": place[:2]} for place in PLACES]
              for split, asked in (("train", "Who keeps the"), ("validation", "Name the keeper of the"),
                                   ("test", "Tell who keeps the"))}
    run = Run.create(tmp_path / "run", task=task_from_rows(**splits, reward="contains", max_new_tokens=8),
                     model=FakePolicy(tmp_path / "run" / "adapters"), strategy="lora", max_rounds=2, lora={"rank": 4})
    assert run.adapt()["rounds"][0]["kept"]
    for settings, words in (({"anchor": str(anchor)}, "another anchor set begins at 0"),
                            ({"lora": {"rank": 2}}, "lora.rank cannot become 2 in round 2")):
        with pytest.raises(NsloraError, match=words):
            fork(run, tmp_path / "none", at=2, settings=settings)
        assert not (tmp_path / "none").exists()
    assert fork(run, tmp_path / "first", at=1, settings={"lora": {"rank": 2}}).lab.settings.lora.rank == 2
    assert fork(run, tmp_path / "all", at=0, settings={"anchor": str(anchor)}).lab.anchor


def test_half_a_fork_is_no_run(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nslora.graph.runs.fork.copy_past", full)
        with pytest.raises(OSError, match="No space"):
            fork(finished, tmp_path / "half", at=2)
    assert not (tmp_path / "half").exists()
    taken = shutil.copytree(finished.folder, tmp_path / "taken")
    with monkeypatch.context() as patch:        # another process begins there in the very moment
        patch.setattr("nslora.graph.runs.fork.refuse_unusable", lambda _: None)
        with pytest.raises(RunError, match="by another process just now"):
            fork(finished, taken, at=2)
    assert (taken / "checkpoints.sqlite").is_file()
    other = fork(finished, tmp_path / "lost", at=2)
    (other.folder / "checkpoints.sqlite").unlink()
    with pytest.raises(RunError, match="fork again"):
        other.adapt()


@pytest.mark.parametrize(("reward", "settings"), [(1.0, {}), (0.0, {"max_rounds": 0})])
def test_a_run_that_ended_before_its_first_round_is_replayed(
        keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path], reward: float, settings: Any) -> None:
    rows = {split: [{"question": row.question, "reference": str(row.reference)} for row in getattr(keepers, split)]
            for split in ("train", "validation", "test")}
    run = Run.create(tmp_path / "run", task=task_from_rows(**rows, reward=lambda reply: reward, max_new_tokens=8),
                     model=str(tiny_folder()), device={"threads": 1, "device": "cpu"}, **settings)
    assert run.adapt()["rounds"] == []
    found = replay(run, tmp_path / "again")
    assert found.same, found.differences


@pytest.mark.parametrize(("reply", "error"), [
    (json.dumps({"system": "Be short.", "question_template": "{question}", "demonstrations": []}), ""),
    (TimeoutError("late"), "The editor scripted failed 1 times in a row")])
def test_edits_that_came_as_forms_and_failures_by_name_are_replayed(
        begin: Callable[..., Run], tmp_path: Path, reply: str | Exception, error: str) -> None:
    run = begin(editor=StructuredChat([reply], repeat=True), strategy="textgrad", max_rounds=1,
                editing={"structured": "always", "patience": 1})
    (only,) = run.adapt()["rounds"]
    assert error in (only["error"] or "")
    assert bool(only["candidate"]) is not bool(error)
    found = replay(run, tmp_path / "again")
    assert found.same, found.differences


def test_a_fork_takes_replies_over_and_makes_failed_calls_again(begin: Callable[..., Run], tmp_path: Path) -> None:
    answer = improved(Prompt(system="Be short."))
    chat = ScriptedChat([TimeoutError("late"), "critique", answer], repeat=True)
    run = begin(editor=chat, strategy="textgrad", max_rounds=1)
    run.adapt()
    other = fork(run, tmp_path / "fork", at=1, editor=chat)
    assert all(not json.loads(line)["error"] for line in (other.folder / "editor.jsonl").read_text().splitlines())
    other.adapt()
    found = replay(other, tmp_path / "again")
    assert found.same, found.differences


def test_a_fork_asks_a_chat_model_that_it_is_given_whatever_its_name(begin: Callable[..., Run], tmp_path: Path) -> None:
    chat = ScriptedChat(["critique", improved(Prompt(system="Be short."))], repeat=True)
    run = begin(editor=chat, strategy="textgrad", max_rounds=1)
    run.adapt()
    asked = len(chat.requests)
    fork(run, tmp_path / "same", at=1, editor=chat).adapt()
    assert len(chat.requests) == asked          # the very one that said it
    new = ScriptedChat(["critique", improved(Prompt(system="Be long."))], repeat=True)
    other = fork(run, tmp_path / "other", at=1, editor=new)
    (only,) = other.adapt()["rounds"]
    assert new.requests
    assert only["candidate"]["prompt"] == Prompt(system="Be long.").hash


def test_nothing_is_no_comparison() -> None:
    with pytest.raises(RunError, match="name at least one run"):
        compare([])


def test_runs_of_other_questions_are_not_compared(finished: Run, tmp_path: Path) -> None:
    other = shutil.copytree(finished.folder, tmp_path / "other")
    path = other / "result" / "test.jsonl"
    rows = [{**json.loads(line), "question_sha256": "0"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match="tested on other questions"):
        compare([finished.folder, other])
