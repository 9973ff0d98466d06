"""Forks and replays of runs with editors that failed, people who answered, caps that were reached, and kills."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import ObedientPolicy
from langchain_core.messages import BaseMessage

import nslora.graph.runs.fork as forks
from nslora.graph.build import build_graph
from nslora.graph.runs.compare import compare
from nslora.graph.runs.fork import fork
from nslora.graph.runs.replay import replay
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.tools.errors import RunError
from nslora.tools.prompt import Prompt
from nslora.tools.tasks.task import Task, load_task, task_from_rows
from nslora.tools.testing.scripted_chat import ScriptedChat, improved
from nslora.tools.testing.tiny_task import write_tiny_task

BULLETS = Prompt("Answer in one line that begins with a dash.")
ONCE, TWICE, THRICE = (Prompt(f"Be worse, {often}.") for often in ("once", "twice", "three times"))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(write_tiny_task(tmp_path / "task"))


def edits(*proposed: Prompt | Exception, **fields: Any) -> ScriptedChat:
    """An editor that proposes these one after the other, and then the last again; its critiques are all alike."""
    left = list(proposed)

    def answer(messages: list[BaseMessage]) -> str:
        if "gradient (feedback) engine" in str(messages[0].text):
            return "Ask for a dash."
        new = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(new, Exception):
            raise new
        return improved(new)

    return ScriptedChat([answer], repeat=True, **fields)


def begun(tmp_path: Path, task: Task, editor: Any, name: str = "run", **settings: Any) -> Run:
    values = {"model": ObedientPolicy(), "strategy": "textgrad", "max_rounds": 3, "reuse_replies": False, **settings}
    return Run.create(tmp_path / name, task=task, editor=editor, **values)


def test_a_fork_that_ends_without_a_round_of_its_own_shows_its_past(tmp_path: Path, task: Task) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first.adapt()
    other = fork(first, tmp_path / "fork", at=2, settings={"max_rounds": 4, "target": 0.5})
    assert len(look(other.folder).rounds) == 1
    assert len(other.adapt()["rounds"]) == 1
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
        build_graph(saver).invoke(state, first.config, context=first.context)
    assert fork(first, tmp_path / "back", at=1).adapt()["rounds"]
    with pytest.raises(RunError, match="no state of a run"):
        build_graph().invoke({}, first.config, context=first.context)       # type: ignore[call-overload]


@pytest.mark.parametrize(("killed_in", "at", "action"), [
    ("force", 1, "lora"), ("reopen", 2, None), ("copy_past", 0, None)])
def test_a_fork_that_was_killed_half_way_is_not_gone_on_with(
        tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, killed_in: str, at: int, action: Any) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first.adapt()

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(forks, killed_in, killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)      # a kill cleans nothing up
        with pytest.raises(Killed):
            fork(first, tmp_path / "fork", at=at, action=action, settings={"max_rounds": 3})
    with pytest.raises(RunError, match=r"interrupted before it was whole.*make it again from run"):
        Run.open(tmp_path / "fork", task=task, model=ObedientPolicy(), editor=edits(BULLETS))


def test_an_action_that_cannot_be_forced_leaves_no_folder(
        tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first.adapt()

    def refused(*_: object) -> None:
        raise RunError("there was nothing to decide")

    monkeypatch.setattr(forks, "force", refused)
    with pytest.raises(RunError):
        fork(first, tmp_path / "fork", at=1, action="lora")
    assert not (tmp_path / "fork").exists()


def test_another_editor_does_not_inherit_the_failures_of_the_old_one(tmp_path: Path, task: Task) -> None:
    first = begun(tmp_path, task, edits(TimeoutError("late")), editing={"patience": 2}, max_rounds=6,
                  signal={"textgrad_patience": 9})
    assert "given up" in first.adapt()["stop"]
    given_up = len(first.report()["rounds"]) + 1
    for number, options in enumerate(({}, {"action": "textgrad"})):
        other = fork(first, tmp_path / f"fork{number}", at=given_up, editor=edits(BULLETS), **options)  # type: ignore[arg-type]
        rounds = other.adapt()["rounds"]
        assert rounds[given_up - 1]["error"] is None
        assert replay(other, tmp_path / f"replay{number}").same
    same = fork(first, tmp_path / "same", at=given_up)
    assert "given up" in same.adapt()["stop"]


def test_a_raised_cap_opens_editing_again(tmp_path: Path, task: Task) -> None:
    few: dict[str, Any] = {"max_tokens": 4000, "failures": 1, "retries": 0, "reply_tokens": 100}
    first = begun(tmp_path, task, edits(ONCE, BULLETS), editing=few, signal={"textgrad_patience": 9}, max_rounds=6)
    rounds = first.adapt()["rounds"]
    assert "cap on tokens" in rounds[-1]["error"]
    other = fork(first, tmp_path / "fork", at=len(rounds) + 1, settings={"editing": {"max_tokens": 10**7}})
    assert other.adapt()["rounds"][len(rounds)]["error"] is None


def test_a_person_who_is_asked_only_in_the_fork_is_asked_in_its_replay(tmp_path: Path, task: Task) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first.adapt()
    for at in (0, 1):
        other = fork(first, tmp_path / f"fork{at}", at=at, settings={"approve": "edits"})
        with pytest.raises(RunError, match="waits for a person"):
            other.adapt()
        assert other.resume({"answer": "reject"})["rounds"][0]["error"] == "rejected by a person"
        found = replay(other, tmp_path / f"replay{at}", begin_at=at)
        assert found.same, found.differences


def test_a_persons_prompt_that_the_budget_refused_is_replayed_as_theirs(begin: Callable[..., Run],
                                                                        tmp_path: Path) -> None:
    settings: dict[str, Any] = {"approve": "edits", "strategy": "textgrad", "max_rounds": 1}
    free = begin("free", **settings)
    with pytest.raises(RunError):
        free.adapt()
    whole = free.resume({"answer": "accept"})["cost"]["tflop"]
    run = begin("capped", **settings, max_tflop=whole * 1.3)
    with pytest.raises(RunError):
        run.adapt()
    own = Prompt(system="Be short, a dash. " * 25)
    (only,) = run.resume({"answer": "rewrite", "prompt": own.render()})["rounds"]
    assert "too long for what is left of max_tflop" in only["error"]
    assert only["person"] == {"answer": "rewrite", "prompt": own.hash}
    found = replay(run, tmp_path / "replay")
    assert found.same, found.differences
    assert (fork(run, tmp_path / "fork", at=2).folder / "prompts" / f"{own.hash}.md").exists()


def test_a_replay_from_a_later_round_knows_which_calls_came_before(tmp_path: Path, task: Task) -> None:
    rows = {split: [{"question": row.question, "reference": row.reference} for row in getattr(task, split)]
            for split in ("train", "validation", "test")}
    one = task_from_rows(train=rows["train"][:1], validation=rows["validation"], test=rows["test"], reward=[
        {"name": "fact", "check": "contains"},
        {"name": "style", "check": "regex", "pattern": "- .*", "form": "- {reply}"}])
    # The critique is asked for once and answered from the record from then on, which adds no line.
    run = begun(tmp_path, one, edits(ONCE, TWICE, TimeoutError("late"), THRICE), max_rounds=4,
                signal={"textgrad_patience": 9})
    errors = [each["error"] for each in run.adapt()["rounds"]]
    assert [bool(error) for error in errors] == [False, False, True, False]
    for number in (1, 2, 3, 4):
        found = replay(run, tmp_path / f"replay{number}", begin_at=number)
        assert found.same, (number, found.differences)


@pytest.mark.parametrize("cap", [4000, 6000, 8000, 11000])
def test_a_cap_on_tokens_is_reached_at_the_same_call_in_a_replay(tmp_path: Path, task: Task, cap: int) -> None:
    class Short(ScriptedChat):
        max_tokens: int | None = 100

    editor = Short(edits(ONCE).replies, repeat=True)
    run = begun(tmp_path, task, editor, max_rounds=1, editing={"max_tokens": cap})
    (only,) = run.adapt()["rounds"]
    assert ("cap on tokens" in str(only["error"])) == (cap < 8000)
    found = replay(run, tmp_path / "replay")
    assert found.same, found.differences


def test_a_fork_from_the_first_evaluation_pays_for_its_own_replies_alone(begin: Callable[..., Run],
                                                                         tmp_path: Path) -> None:
    run = begin(max_rounds=0, reuse_replies=False)
    run.adapt()
    other = fork(run, tmp_path / "fork", at=0)
    other.adapt()
    (mine, its) = ((run.state() or {})["start_measured"], (other.state() or {})["start_measured"])
    assert mine["generated_tokens"] > 0 == mine["cached_replies"]
    assert its["generated_tokens"] == 0 < its["cached_replies"]


class Counting(ObedientPolicy):
    """A policy that says what a token costs."""

    def describe(self) -> dict[str, Any]:
        return {"model": self.name, "forward_flop_per_token": 1e9, "training_flop_per_token": 3e9}


@pytest.mark.parametrize("cap_tflop", [2.6, 3.0, 4.0, 6.0, 20.0, 40.0])
def test_compute_is_not_overspent_where_the_policy_edits_its_own_prompt(
        tmp_path: Path, task: Task, cap_tflop: float) -> None:
    run = begun(tmp_path, task, "policy", model=Counting(edit=improved(ONCE)), max_rounds=2, max_tflop=cap_tflop)
    report = run.adapt()
    assert any(each["candidate"] for each in report["rounds"]) == (cap_tflop >= 20)      # some are within it
    assert report["cost"]["tflop"] <= cap_tflop
