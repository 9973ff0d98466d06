"""Replies are stored in lots: what a kill or Ctrl-C leaves of a long evaluation is kept, and paid for once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from test_run import results

from nslora.graph.run import Run
from nslora.tools.chat_format import Dialogue
from nslora.tools.local_policy import LocalPolicy
from nslora.tools.policy import Generated

Begin = Callable[..., Run]
LOT = 4
SECOND_OF_CANDIDATE = 4     # the start's evaluation takes three lots, then the burst's has three


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
    monkeypatch.setattr("nslora.tools.evaluation.STORED_REPLIES", LOT)
    monkeypatch.setattr("nslora.nodes.workplace.STORED_REPLIES", LOT)
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
    return {**{key: value for key, value in report["cost"].items() if not key.endswith("_s")},
            "rounds": [each["generated_tokens"] for each in report["rounds"]]}


def at_call(number: int, act: Callable[[], None], asked: list[int], patch: pytest.MonkeyPatch) -> None:
    """Have something happen as the policy is asked for its lot of this number, from 0."""
    generate = LocalPolicy.generate

    def acting(self: LocalPolicy, dialogues: Sequence[Dialogue], **options: Any) -> Generated:
        if len(asked) == number:
            act()
        return generate(self, dialogues, **options)

    patch.setattr(LocalPolicy, "generate", acting)


def test_a_long_evaluation_stops_after_a_lot_and_goes_on_from_there(
        begin: Begin, asked: list[int], whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(asked)
    asked.clear()
    run, control = begin(max_rounds=1, strategy="lora"), RunControl()
    with monkeypatch.context() as patch:
        at_call(SECOND_OF_CANDIDATE, lambda: control.request_drain("test"), asked, patch)
        with pytest.raises(GraphDrained):
            list(run.stream(control=control))
    assert asked == wanted[:SECOND_OF_CANDIDATE + 1]
    Run.open(run.folder).resume()
    assert asked == wanted
    assert {**results(run), "cost": spent(run)} == whole


def test_a_killed_evaluation_loses_one_lot(
        begin: Begin, asked: list[int], whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(asked)
    asked.clear()
    run = begin(max_rounds=1, strategy="lora")

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        at_call(SECOND_OF_CANDIDATE + 1, kill, asked, patch)
        with pytest.raises(Killed):
            run.adapt()
    Run.open(run.folder).resume()
    assert asked == wanted
    assert {**results(run), "cost": spent(run)} == whole
