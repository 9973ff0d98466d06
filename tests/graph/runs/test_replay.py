"""Replays: a run once more from its records, offline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edits import RefusedRequestError, StructuredChat
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from scripted_runs import BULLETS, ONCE, THRICE, TWICE, begun, edits

from nslora.graph.build import build_graph
from nslora.graph.runs.fork import fork
from nslora.graph.runs.replay import differences, replay
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.tools.errors import RunError
from nslora.tools.files import sha256_of_file
from nslora.tools.policy import Policy
from nslora.tools.prompt import Prompt
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.testing.scripted_chat import ScriptedChat
from nslora.tools.testing.tiny_model import write_tiny_model


def fingerprint(folder: Path) -> dict[str, str]:
    """Hash of every file of a run; SQLite's side files come and go with its readers."""
    return {
        str(path.relative_to(folder)): sha256_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal", ".lock"))
    }


def test_a_replay_calls_nobody_trains_nothing_and_comes_out_the_same(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object, **__: object) -> None:
        pytest.fail("a replay generated or trained")

    policy: Policy = finished.workspace.policy
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


def test_a_forced_action_is_replayed(finished: Run, tmp_path: Path) -> None:
    forced = fork(finished, tmp_path / "forced", at=2, action="textgrad", settings={"max_rounds": 2})
    forced.adapt()
    found = replay(forced, tmp_path / "again")
    assert found.same, found.differences
    assert found.rounds == 1  # of the two, the first is the original's
    assert replay(found.run, tmp_path / "once more").same
    later = fork(forced, tmp_path / "later", at=3, settings={"max_rounds": 3})
    later.adapt()
    assert replay(later, tmp_path / "later again").same


def test_a_replay_refuses_other_weights(
    finished: Run,
    tmp_path: Path,
    tiny_folder: Callable[..., Path],
    begin: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    task = finished.workspace.task
    run = Run.create(
        tmp_path / "run",
        task=task,
        model=str(model),
        strategy="textgrad",
        max_rounds=1,
        device={"threads": 1, "device": "cpu"},
    )
    run.adapt()
    write_tiny_model(model, seed=1)
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path / "empty"))
    with pytest.raises(RunError, match="is not the one"):
        replay(run, tmp_path / "again", begin_at=0)


@pytest.mark.parametrize(
    "answer",
    [{"answer": "reject"}, {"answer": "accept"}, {"answer": "rewrite", "prompt": Prompt(system="Be short.").render()}],
)
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


def test_a_state_that_was_changed_by_hand_is_named_where_a_replay_differs(
    begin: Callable[..., Run], tmp_path: Path
) -> None:
    run = begin(max_rounds=1, strategy="lora")
    control = RunControl()

    def until_classified() -> None:
        for _, part in run.stream(control=control):
            if "classify" in part:
                control.request_drain("test")

    with pytest.raises(GraphDrained):
        until_classified()
    with run.checkpointer() as saver:
        graph = build_graph(checkpointer=saver)
        decision = graph.get_state(run.config).values["decision"]
        graph.update_state(run.config, {"decision": {**decision, "action": "textgrad"}}, as_node="classify")
    assert run.adapt().report["rounds"][0]["action"] == "textgrad"
    found = replay(run, tmp_path / "again")
    assert "changed by hand (update_state)" in found.differences[0]
    assert any("action was 'textgrad', is 'lora'" in each for each in found.differences)


def test_an_unfinished_run_is_not_replayed(begin: Callable[..., Run], tmp_path: Path) -> None:
    run = begin()
    with pytest.raises(RunError, match="no result yet"):
        replay(run, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(("reward", "settings"), [(1.0, {}), (0.0, {"max_rounds": 0})])
def test_a_run_that_ended_before_its_first_round_is_replayed(
    keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path], reward: float, settings: Any
) -> None:
    rows = {
        split: [{"question": row.question, "reference": str(row.reference)} for row in getattr(keepers, split)]
        for split in ("train", "validation", "test")
    }
    run = Run.create(
        tmp_path / "run",
        task=task_from_rows(**rows, reward=lambda reply: reward, max_new_tokens=8),
        model=str(tiny_folder()),
        device={"threads": 1, "device": "cpu"},
        **settings,
    )
    assert run.adapt().report["rounds"] == []
    found = replay(run, tmp_path / "again")
    assert found.same, found.differences


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (json.dumps({"system": "Be short.", "question_template": "{question}", "demonstrations": []}), ""),
        (RefusedRequestError("too long"), "The editor scripted failed 1 times in a row"),
    ],
)
def test_edits_that_came_as_forms_and_failures_by_name_are_replayed(
    begin: Callable[..., Run], tmp_path: Path, reply: str | Exception, error: str
) -> None:
    run = begin(
        editor=StructuredChat([reply], repeat=True),
        strategy="textgrad",
        max_rounds=1,
        editing={"structured": "always", "patience": 1},
    )
    (only,) = run.adapt().report["rounds"]
    assert error in (only["error"] or "")
    assert bool(only["candidate"]) is not bool(error)
    found = replay(run, tmp_path / "again")
    assert found.same, found.differences


def test_a_person_who_is_asked_only_in_the_fork_is_asked_in_its_replay(tmp_path: Path, task: Task) -> None:
    first = begun(tmp_path, task, edits(BULLETS), max_rounds=1)
    first.adapt()
    for at in (0, 1):
        other = fork(first, tmp_path / f"fork{at}", at=at, settings={"approve": "edits"})
        with pytest.raises(RunError, match="waits for a person"):
            other.adapt()
        assert other.resume({"answer": "reject"}).report["rounds"][0]["error"] == "rejected by a person"
        found = replay(other, tmp_path / f"replay{at}", begin_at=at)
        assert found.same, found.differences


def test_a_persons_prompt_that_the_budget_refused_is_replayed_as_theirs(
    begin: Callable[..., Run], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"approve": "edits", "strategy": "textgrad", "max_rounds": 1}
    free = begin("free", **settings)
    with pytest.raises(RunError):
        free.adapt()
    whole = free.resume({"answer": "accept"}).report["cost"]["tflop"]
    run = begin("capped", **settings, max_tflop=whole * 1.3)
    with pytest.raises(RunError):
        run.adapt()
    own = Prompt(system="Be short, a dash. " * 25)
    (only,) = run.resume({"answer": "rewrite", "prompt": own.render()}).report["rounds"]
    assert "too long for what is left of max_tflop" in only["error"]
    assert only["person"] == {"answer": "rewrite", "prompt": own.hash}
    found = replay(run, tmp_path / "replay")
    assert found.same, found.differences
    assert (fork(run, tmp_path / "fork", at=2).folder / "prompts" / f"{own.hash}.md").exists()


def test_a_replay_from_a_later_round_knows_which_calls_came_before(tmp_path: Path, task: Task) -> None:
    rows = {
        split: [{"question": row.question, "reference": row.reference} for row in getattr(task, split)]
        for split in ("train", "validation", "test")
    }
    one = task_from_rows(
        train=rows["train"][:1],
        validation=rows["validation"],
        test=rows["test"],
        reward=[
            {"name": "fact", "check": "contains"},
            {"name": "style", "check": "regex", "pattern": "- .*", "form": "- {reply}"},
        ],
    )
    # The critique is asked for once and answered from the record from then on, which adds no line.
    run = begun(
        tmp_path,
        one,
        edits(ONCE, TWICE, RefusedRequestError("too long"), THRICE),
        max_rounds=4,
        signal={"textgrad_patience": 9},
    )
    errors = [each["error"] for each in run.adapt().report["rounds"]]
    assert [bool(error) for error in errors] == [False, False, True, False]
    for number in (1, 2, 3, 4):
        found = replay(run, tmp_path / f"replay{number}", begin_at=number)
        assert found.same, (number, found.differences)


@pytest.mark.parametrize("cap", [4000, 6000, 8000, 11000])
def test_a_cap_on_tokens_is_reached_at_the_same_call_in_a_replay(tmp_path: Path, task: Task, cap: int) -> None:
    class Short(ScriptedChat):
        max_tokens: int | None = 100

    editor = Short(edits(ONCE).replies, repeat=True)
    run = begun(tmp_path, task, editor, max_rounds=1, editing={"protocol": "textgrad", "max_tokens": cap})
    (only,) = run.adapt().report["rounds"]
    assert ("cap on tokens" in str(only["error"])) == (cap < 11000)
    found = replay(run, tmp_path / "replay")
    assert found.same, found.differences


def test_a_round_that_never_was_cannot_be_replayed_from(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="never came to round 5: it has 3"):
        replay(finished, tmp_path / "again", begin_at=5)
    assert not (tmp_path / "again").exists()


def test_a_replay_is_replayed_from_its_own_first_round(tmp_path: Path, task: Task) -> None:
    run = begun(tmp_path, task, edits(ONCE, TWICE, THRICE))
    run.adapt()
    first = replay(run, tmp_path / "replay", begin_at=2)
    again = replay(first.run, tmp_path / "again")
    assert (again.differences, again.rounds) == ((), first.rounds)
