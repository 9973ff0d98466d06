"""Each node's step by itself: a state and a workspace in, changes out, no graph."""

from pathlib import Path
from typing import Any

import pytest
from edits import RefusedRequestError
from fakes import FakePolicy
from scripted_runs import BULLETS, edits
from states import after_start, proposal, state, workspace

from nslora.nodes.classify import step as classify
from nslora.nodes.evaluate import step as evaluate
from nslora.nodes.finish import step as finish
from nslora.nodes.lora_update import step as lora_update
from nslora.nodes.textgrad_edit import step as textgrad_edit
from nslora.tools.router.monitoring_signal import Update, signal_of
from nslora.tools.schema import KINDS
from nslora.tools.tasks.task import Task

SATURATED = signal_of([Update(kind, False, 0.0, 0.0) for kind in KINDS for _ in range(2)])


def test_evaluate_reads_each_evaluation_once(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("nslora.tools.evaluation.records.read_evaluation", read.append)
    room = workspace(tmp_path, task)
    begun = after_start(room)
    assert begun["kept_measured"] is not None
    assert begun["kept_measured"]["failures"] == 8
    assert read == []  # what a step wrote, the next step has in memory


def test_evaluate_knows_a_candidate_again_and_does_not_pay_twice(tmp_path: Path, task: Task) -> None:
    room = workspace(tmp_path, task)
    begun = state(room.prompts.add(room.task.prompt))
    room.task_id = "first"
    first = evaluate(begun, room)["measured"]
    room.task_id = "second"
    again = evaluate(begun, room)["measured"]
    assert first["generated_tokens"] > again["generated_tokens"] == 0
    assert {**first, "wall_s": 0, "generated_tokens": 0} == {**again, "wall_s": 0}


def test_evaluate_measures_nothing_if_the_update_failed(tmp_path: Path, task: Task) -> None:
    changes = evaluate(state(proposal=proposal()), workspace(tmp_path, task))
    assert changes["measured"] is None
    assert not changes["verdict"]["kept"]


def test_evaluate_makes_a_first_state_of_an_empty_one(tmp_path: Path, task: Task) -> None:
    changes = evaluate({}, workspace(tmp_path, task))  # type: ignore[typeddict-item]
    assert changes["start"] == changes["kept"] == {"adapter": None, "prompt": task.prompt.hash}
    assert changes["measured"]["reward"] > 0


def test_classify_decides_from_the_signal_in_the_state(tmp_path: Path, task: Task) -> None:
    room = workspace(tmp_path, task, routing={"use_signal": True})
    begun = after_start(room)
    decision = classify(begun, room)["decision"]
    assert decision["action"] == "textgrad"
    assert (room.folder / decision["material"]).is_file()
    changes = classify(state(**{**begun, "signal": SATURATED}), room)
    assert changes["decision"]["action"] == "finish"
    assert changes["stop"] == changes["decision"]["reason"]


def test_classify_closes_edits_once_the_editor_is_given_up(tmp_path: Path, task: Task) -> None:
    room = workspace(tmp_path, task, strategy="textgrad")
    changes = classify(state(**{**after_start(room), "editor_failures": 99}), room)
    assert "given up" in changes["stop"]


def test_classify_stops_if_nothing_was_measured(tmp_path: Path, task: Task) -> None:
    assert classify(state(), workspace(tmp_path, task)) == {"stop": "nothing was measured"}


def test_textgrad_edit_proposes_a_prompt_with_its_remade_data(tmp_path: Path, task: Task) -> None:
    room = workspace(tmp_path, task, editor=edits(BULLETS))
    begun = after_start(room)
    changes = textgrad_edit(state(**{**begun, **classify(begun, room)}), room)
    proposed = changes["proposal"]
    assert proposed["candidate"] == {"adapter": None, "prompt": BULLETS.hash}
    assert proposed["new_rows"] == len(task.train)
    assert proposed["editor"]["calls"] == 1
    assert proposed["wall_s"] == changes["wall_s"] > 0
    assert changes["editor_failures"] == 0


def test_textgrad_edit_records_an_editor_that_fails(tmp_path: Path, task: Task) -> None:
    room = workspace(tmp_path, task, editor=edits(RefusedRequestError("too long")))
    begun = after_start(room)
    changes = textgrad_edit(state(**{**begun, **classify(begun, room)}), room)
    assert changes["proposal"]["candidate"] is None
    assert changes["proposal"]["error"]
    assert changes["editor_failures"] == 1


@pytest.mark.parametrize("pool", [None, {"prompt": "", "rows": 1, "waiting": True}])
def test_lora_update_proposes_an_adapter_and_uses_up_remade_data(tmp_path: Path, task: Task, pool: Any) -> None:
    room = workspace(tmp_path, task, policy=FakePolicy(tmp_path / "run" / "adapters"))
    begun = after_start(room)
    if pool:
        pool = {**pool, "prompt": room.prompts.add(BULLETS)}
    changes = lora_update(state(**{**begun, **classify(begun, room), "remade": pool}), room)
    proposed = changes["proposal"]
    assert proposed["error"] is None
    assert proposed["candidate"]["adapter"]
    assert proposed["candidate"]["prompt"] == (BULLETS.hash if pool else begun["kept"]["prompt"])
    assert proposed["trained_tokens"] == len(task.train)  # as FakePolicy counts
    assert changes["remade"] == (pool and {**pool, "waiting": False})


def test_lora_update_records_a_budget_that_holds_no_epoch(tmp_path: Path, task: Task) -> None:
    room = workspace(tmp_path, task, policy=FakePolicy(tmp_path / "run" / "adapters"), max_train_tokens=1)
    begun = after_start(room)
    changes = lora_update(state(**{**begun, **classify(begun, room)}), room)
    assert changes["proposal"]["error"] == "the budget leaves no room for one epoch of these rows"
    assert changes["proposal"]["trained_tokens"] == 0


def test_finish_tests_the_start_once_if_nothing_was_better(tmp_path: Path, task: Task) -> None:
    room = workspace(tmp_path, task)
    begun = after_start(room)
    sent = len(room.policy.sent)  # type: ignore[attr-defined]
    changes = finish(state(**{**begun, "stop": "round limit of 0 reached"}), room)
    assert changes["status"] == "finished"
    assert len(room.policy.sent) - sent == len(task.test)  # type: ignore[attr-defined]
    assert (room.folder / "result" / "report.json").is_file()
