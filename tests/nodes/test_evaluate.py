"""Replies are stored in lots: what a kill or Ctrl-C leaves of a long evaluation is kept, and paid for once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from scripted_runs import results

from nslora.graph.runs.run import Run
from nslora.nodes.shared.budget import Budget
from nslora.nodes.shared.runtime import SAVES_EACH
from nslora.tools.evaluation import rollouts as evaluation
from nslora.tools.inference.flops import TERA
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import Generated
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Dialogue

Begin = Callable[..., Run]
LOT = 4
SECOND_OF_CANDIDATE = 4  # the start's evaluation takes three lots, then the burst's has three


class Killed(BaseException):
    """As good as a kill: nothing of the package catches it."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many replies the policy was asked for, call by call; lots are small, and no reply is known before."""
    counts: list[int] = []
    generate = LocalPolicy.generate

    def counted(self: LocalPolicy, dialogues: Sequence[Dialogue], **options: Any) -> Generated:
        counts.append(len(dialogues))
        return generate(self, dialogues, **options)

    monkeypatch.setattr(LocalPolicy, "generate", counted)
    monkeypatch.setattr("nslora.tools.evaluation.rollouts.STORED_REPLIES", LOT)
    monkeypatch.setattr("nslora.nodes.shared.runtime.SAVES_EACH", {**SAVES_EACH, "evaluate": LOT, "finish": LOT})
    return counts


@pytest.fixture
def whole(begin: Begin, asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The report of a run that nothing happened to, with a cache of its own; the next run has none of its replies."""
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path / "one"))
    run = begin("whole", max_rounds=1, strategy="lora")
    run.adapt()
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path / "other"))
    assert asked[:6] == [LOT] * 6
    assert spent(run)["rounds"][0] > 0
    return {**results(run), "cost": spent(run)}


def spent(run: Run) -> dict[str, Any]:
    report = run.report()
    return {
        **{key: value for key, value in report["cost"].items() if not key.endswith("_s")},
        "rounds": [each["generated_tokens"] for each in report["rounds"]],
    }


def kill() -> None:
    raise Killed


def at_call(number: int, act: Callable[[], None], asked: list[int], patch: pytest.MonkeyPatch) -> None:
    """Have something happen as the policy is asked for its lot of this number, from 0."""
    generate = LocalPolicy.generate

    def acting(self: LocalPolicy, dialogues: Sequence[Dialogue], **options: Any) -> Generated:
        if len(asked) == number:
            act()
        return generate(self, dialogues, **options)

    patch.setattr(LocalPolicy, "generate", acting)


def test_a_long_evaluation_stops_after_a_lot_and_goes_on_from_there(
    begin: Begin, asked: list[int], whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(asked)
    asked.clear()
    run, control = begin(max_rounds=1, strategy="lora"), RunControl()
    with monkeypatch.context() as patch:
        at_call(SECOND_OF_CANDIDATE, lambda: control.request_drain("test"), asked, patch)
        with pytest.raises(GraphDrained):
            list(run.stream(control=control))
    assert asked == wanted[: SECOND_OF_CANDIDATE + 1]
    Run.open(run.folder).resume()
    assert asked == wanted
    assert {**results(run), "cost": spent(run)} == whole


def test_a_killed_evaluation_loses_one_lot(
    begin: Begin, asked: list[int], whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(asked)
    asked.clear()
    run = begin(max_rounds=1, strategy="lora")
    with monkeypatch.context() as patch:
        at_call(SECOND_OF_CANDIDATE + 1, kill, asked, patch)
        with pytest.raises(Killed):
            run.adapt()
    Run.open(run.folder).resume()
    assert asked == wanted
    assert {**results(run), "cost": spent(run)} == whole


def test_time_that_is_up_charges_a_resumed_evaluation_like_a_whole_one(
    begin: Begin, asked: list[int], whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.clear()
    run = begin(max_rounds=1, strategy="lora", max_seconds=1e6, device={"batch_size": 1, "device": "cpu"})
    with monkeypatch.context() as patch:
        at_call(SECOND_OF_CANDIDATE + 1, kill, asked, patch)
        with pytest.raises(Killed):
            run.adapt()
    monkeypatch.setattr(Budget, "deadline", lambda _, to_be_evaluated=True: None if to_be_evaluated else 0.0)
    monkeypatch.setattr(Budget, "measuring_flop", lambda *_: 12 * TERA)
    (record,) = Run.open(run.folder).resume().report["rounds"]
    assert record["error"].startswith("stopped at 1 of 4 replies")
    assert 9.0 < record["flop"] / TERA < 9.1


@pytest.mark.parametrize("questions", ["abcdabef", "aabcde", "abcdefghij"])
def test_a_question_that_comes_twice_is_asked_and_paid_once(
    tmp_path: Path, tiny_policy: Callable[..., LocalPolicy], monkeypatch: pytest.MonkeyPatch, questions: str
) -> None:
    monkeypatch.setattr(evaluation, "STORED_REPLIES", LOT)

    def ask(name: str, stop_at: int | None = None) -> evaluation.Replies:
        def on_progress(done: int, _: int) -> None:
            if done == stop_at:
                raise Killed

        cache = ReplyCache(tmp_path / name)
        cache.payer = "run/task"
        dialogues = [Prompt().messages(question) for question in questions]
        return evaluation.ask(tiny_policy(), cache, dialogues, adapter=None, max_new_tokens=3, on_progress=on_progress)

    with pytest.raises(Killed):
        ask("broken", LOT)
    replies = ask("whole")
    assert ask("broken") == replies
    assert replies.cached == 0


def test_a_run_charges_each_reply_once(begin: Begin) -> None:
    """The first evaluation by hand: every reply of two splits, and every reference of validation, with its prompt."""
    run = begin("one", max_rounds=0)
    report = run.adapt().report
    policy, task, prompt = run.workspace.policy, run.workspace.task, run.workspace.task.prompt
    tokens = 0
    for row in (*task.train, *task.validation):
        dialogue = prompt.messages(row.question)
        (reply,) = policy.generate([dialogue], adapter=None, max_new_tokens=task.max_new_tokens).replies
        tokens += len(policy.format.prompt_ids(dialogue)) + len(reply.encode()) + 1
        if row in task.validation:
            tokens += len(policy.format.prompt_ids(dialogue)) + len((row.reference or "").encode()) + 1
    assert report["cost"]["start_tflop"] * 1e12 == pytest.approx(tokens * policy.describe()["forward_flop_per_token"])
