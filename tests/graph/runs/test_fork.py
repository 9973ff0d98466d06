"""Forks, replays and comparisons: another way from a round, the same way again, and side by side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edits import RefusedRequestError
from fakes import FakePolicy, ObedientPolicy
from scripted_runs import BULLETS, ONCE, TWICE, begun, edits
from typer.testing import CliRunner

import nslora.graph.runs.fork as forks
from nslora.graph.build import build_graph
from nslora.graph.cli.app import app
from nslora.graph.runs.compare import compare
from nslora.graph.runs.copy_files import copy_records
from nslora.graph.runs.fork import fork, merged
from nslora.graph.runs.replay import replay
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.errors import NsloraError, RunError
from nslora.tools.files import read_json, sha256_of_file
from nslora.tools.prompt import Prompt
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.testing.scripted_chat import ScriptedChat, improved
from nslora.tools.testing.tiny_task import PLACES
from nslora.tools.workspace.workspace import _WORKSPACES


def fingerprint(folder: Path) -> dict[str, str]:
    """Hash of every file of a run; SQLite's side files come and go with its readers."""
    return {
        str(path.relative_to(folder)): sha256_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal", ".lock"))
    }


def test_a_fork_takes_another_way_and_leaves_the_original_alone(finished: Run, tmp_path: Path) -> None:
    before = fingerprint(finished.folder)
    head = finished.state()
    other = fork(finished, tmp_path / "fork", at=3, action="textgrad", settings={"lora": {"rank": 2}})
    assert other.workspace.settings.lora.rank == 2
    report = other.adapt().report
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
    assert [each["action"] for each in other.adapt().report["rounds"]] == ["textgrad", "textgrad", "lora", "textgrad"]


def test_a_round_that_never_was_cannot_be_forked(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="never came to round 9"):
        fork(finished, tmp_path / "none", at=9)
    assert not (tmp_path / "none").exists()


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
    copy_records(source, target, editor=False, trained=True)
    assert not (tmp_path / "there" / "secret").exists()


def test_settings_are_merged_group_by_group() -> None:
    old = {"seed": 0, "lora": {"rank": 8, "alpha": 16.0}}
    assert merged(old, {"lora": {"rank": 4}}) == {"seed": 0, "lora": {"rank": 4, "alpha": 16.0}}


def test_a_run_with_a_chat_model_object_is_replayed_and_forked_from_the_shell_without_it(
    begin: Callable[..., Run],
) -> None:
    run = begin(editor=RuleEditor(), strategy="textgrad", max_rounds=1)
    run.adapt()
    _WORKSPACES.pop(run.folder.resolve())  # as another process finds it
    shell = CliRunner(env={"COLUMNS": "160"})
    assert "came out the same" in shell.invoke(app, ["replay", str(run.folder)]).output
    _WORKSPACES.pop(run.folder.resolve())
    with pytest.raises(RunError, match="was a chat model object"):
        Run.open(run.folder)
    forked = shell.invoke(app, ["fork", str(run.folder), "--at", "1", "--editor", "rules"])
    assert forked.exit_code == 0, forked.output
    assert look(run.folder.with_name("run-fork1")).settings["editor"] == "rules"


def test_a_fork_is_checked_before_anything_is_written(finished: Run, tmp_path: Path) -> None:
    for settings, editor, at, words in (
        ({"strategy": "bogus"}, None, 1, "bogus"),
        ({}, "no-such-editor", 1, "no-such"),
        ({"model": "elsewhere"}, None, 1, "begins at 0"),
        ({}, None, -1, "Round -1"),
        ({"device": {"dtype": "bfloat16"}}, None, 1, "begins at 0"),
    ):
        with pytest.raises(NsloraError, match=words):
            fork(finished, tmp_path / "none", at=at, editor=editor, settings=settings)
        assert not (tmp_path / "none").exists()


def test_a_fork_from_the_first_evaluation_may_have_another_model(
    finished: Run, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    other = fork(
        finished,
        tmp_path / "other",
        at=0,
        settings={"model": str(tiny_folder("gpt2")), "max_rounds": 1, "lora": {"top_blocks": 2}},
    )
    other.adapt()
    facts = read_json(other.folder / "policy.json")
    assert facts["fingerprint"] == other.workspace.policy.fingerprint != finished.workspace.policy.fingerprint


def test_a_fork_goes_on_with_what_was_kept_as_it_is(own_cache: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.jsonl"
    anchor.write_text('{"question": "Who rows the boat?", "reference": "zz"}\n')
    splits = {
        split: [{"question": f"{asked} {place}", "reference": place[:2]} for place in PLACES]
        for split, asked in (
            ("train", "Who keeps the"),
            ("validation", "Name the keeper of the"),
            ("test", "Tell who keeps the"),
        )
    }
    run = Run.create(
        tmp_path / "run",
        task=task_from_rows(**splits, reward="contains", max_new_tokens=8),
        model=FakePolicy(tmp_path / "run" / "adapters"),
        strategy="lora",
        max_rounds=2,
        lora={"rank": 4},
    )
    assert run.adapt().report["rounds"][0]["kept"]
    for settings, words in (
        ({"anchor": str(anchor)}, "another anchor set begins at 0"),
        ({"lora": {"rank": 2}}, "lora.rank cannot become 2 in round 2"),
    ):
        with pytest.raises(NsloraError, match=words):
            fork(run, tmp_path / "none", at=2, settings=settings)
        assert not (tmp_path / "none").exists()
    assert fork(run, tmp_path / "first", at=1, settings={"lora": {"rank": 2}}).workspace.settings.lora.rank == 2
    assert fork(run, tmp_path / "all", at=0, settings={"anchor": str(anchor)}).workspace.regression_set


def test_half_a_fork_is_no_run(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nslora.graph.runs.fork.copy_past", full)
        with pytest.raises(OSError, match="No space"):
            fork(finished, tmp_path / "half", at=2)
    assert not (tmp_path / "half").exists()
    taken = shutil.copytree(finished.folder, tmp_path / "taken")
    with monkeypatch.context() as patch:  # another process begins there in the very moment
        patch.setattr("nslora.graph.runs.fork.refuse_unusable", lambda _: None)
        with pytest.raises(RunError, match="by another process just now"):
            fork(finished, taken, at=2)
    assert (taken / "checkpoints.sqlite").is_file()
    other = fork(finished, tmp_path / "lost", at=2)
    (other.folder / "checkpoints.sqlite").unlink()
    with pytest.raises(RunError, match="fork again"):
        other.adapt()


def test_a_fork_takes_replies_over_and_makes_failed_calls_again(begin: Callable[..., Run], tmp_path: Path) -> None:
    answer = improved(Prompt(system="Be short."))
    chat = ScriptedChat([RefusedRequestError("too long"), "critique", answer], repeat=True)
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
    assert len(chat.requests) == asked  # the very one that said it
    new = ScriptedChat(["critique", improved(Prompt(system="Be long."))], repeat=True)
    other = fork(run, tmp_path / "other", at=1, editor=new)
    (only,) = other.adapt().report["rounds"]
    assert new.requests
    assert only["candidate"]["prompt"] == Prompt(system="Be long.").hash


def test_a_fork_that_ends_without_a_round_of_its_own_shows_its_past(tmp_path: Path, task: Task) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first.adapt()
    other = fork(first, tmp_path / "fork", at=2, settings={"max_rounds": 4, "target": 0.5})
    assert len(look(other.folder).rounds) == 1
    assert len(other.adapt().report["rounds"]) == 1
    sides = compare([first.folder, other.folder]).runs
    assert sides[0].actions == sides[1].actions
    found = replay(first, tmp_path / "replay", begin_at=2)
    assert (found.same, found.rounds) == (True, 0)


def test_a_fork_is_not_begun_again_on_top_of_its_past(tmp_path: Path, task: Task) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    state = first.first_state()
    first.adapt()
    for at in (1, 2):
        with pytest.raises(RunError, match="give the graph None"):
            fork(first, tmp_path / f"fork{at}", at=at).first_state()
    with first.checkpointer() as saver, pytest.raises(RunError, match="a run with 1 rounds behind it"):
        build_graph(checkpointer=saver).invoke(state, first.config, context=first.context)
    assert fork(first, tmp_path / "back", at=1).adapt().report["rounds"]
    new = begun(tmp_path, task, edits(BULLETS), "new")
    with pytest.raises(RunError, match="no state of a run"):
        build_graph().invoke({"stop": "enough"}, context=new.context)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("killed_in", "at", "action"), [("force", 1, "lora"), ("reopen", 2, None), ("copy_past", 0, None)]
)
def test_a_fork_that_was_killed_half_way_is_not_gone_on_with(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, killed_in: str, at: int, action: Any
) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first.adapt()

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(forks, killed_in, killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill cleans nothing up
        with pytest.raises(Killed):
            fork(first, tmp_path / "fork", at=at, action=action, settings={"max_rounds": 3})
    with pytest.raises(RunError, match=r"interrupted before its folder was complete.*make it again from run"):
        Run.open(tmp_path / "fork", task=task, model=ObedientPolicy(), editor=edits(BULLETS))


def test_an_action_that_cannot_be_forced_leaves_no_folder(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first.adapt()

    def refused(*_: object) -> None:
        raise RunError("there was nothing to decide")

    monkeypatch.setattr(forks, "force", refused)
    with pytest.raises(RunError):
        fork(first, tmp_path / "fork", at=1, action="lora")
    assert not (tmp_path / "fork").exists()


def test_another_editor_does_not_inherit_the_failures_of_the_old_one(tmp_path: Path, task: Task) -> None:
    first = begun(
        tmp_path,
        task,
        edits(RefusedRequestError("too long")),
        editing={"patience": 2},
        max_rounds=6,
        signal={"textgrad_patience": 9},
    )
    assert "given up" in first.adapt().report["stop"]
    given_up = len(first.report()["rounds"]) + 1
    for number, options in enumerate(({}, {"action": "textgrad"})):
        other = fork(first, tmp_path / f"fork{number}", at=given_up, editor=edits(BULLETS), **options)  # type: ignore[arg-type]
        rounds = other.adapt().report["rounds"]
        assert rounds[given_up - 1]["error"] is None
        assert replay(other, tmp_path / f"replay{number}").same
    same = fork(first, tmp_path / "same", at=given_up)
    assert "given up" in same.adapt().report["stop"]


def test_a_raised_cap_opens_editing_again(tmp_path: Path, task: Task) -> None:
    few: dict[str, Any] = {"max_tokens": 4000, "failures": 1, "retries": 0, "reply_tokens": 100}
    first = begun(tmp_path, task, edits(ONCE, BULLETS), editing=few, signal={"textgrad_patience": 9}, max_rounds=6)
    rounds = first.adapt().report["rounds"]
    assert "cap on tokens" in rounds[-1]["error"]
    other = fork(first, tmp_path / "fork", at=len(rounds) + 1, settings={"editing": {"max_tokens": 10**7}})
    assert other.adapt().report["rounds"][len(rounds)]["error"] is None


def test_a_fork_with_other_signal_settings_decides_by_a_signal_of_its_own(tmp_path: Path, task: Task) -> None:
    first = begun(tmp_path, task, edits(ONCE, TWICE), signal={"textgrad_patience": 1}, max_rounds=2)
    assert "saturated" in first.adapt().report["stop"]
    assert len(first.report()["rounds"]) == 1
    other = fork(first, tmp_path / "fork", at=2, settings={"signal": {"textgrad_patience": 9}})
    assert len(other.adapt().report["rounds"]) == 2
    assert replay(other, tmp_path / "replay").same


def test_a_fork_from_the_first_evaluation_pays_for_its_own_replies_alone(
    begin: Callable[..., Run], tmp_path: Path
) -> None:
    run = begin(max_rounds=0, reuse_replies=False)
    run.adapt()
    other = fork(run, tmp_path / "fork", at=0)
    other.adapt()
    (mine, its) = ((run.state() or {})["start_measured"], (other.state() or {})["start_measured"])
    assert mine["generated_tokens"] > 0 == mine["cached_replies"]
    assert its["generated_tokens"] == 0 < its["cached_replies"]
