"""Replies and training on Ray: those of this process, also if actors are killed and a node is gone."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from ray_nodes import run_with_ray

from nslora.tools.errors import SettingsError, UnfinishedError
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.opening import refuse_unusable_engine
from nslora.tools.policies.ray_replies import RayReplies
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import Generated
from nslora.tools.training.settings import LoraSettings


def test_a_cluster_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("ray", "ray://head:10001"):
        assert EngineSettings(replies=place).replies == place
    with pytest.raises(ValidationError, match="without user, password or query"):
        EngineSettings(replies="ray://user:secret@head:10001")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"engine.launch=ray needs the package ray: pip install 'nslora\[ray\]'"):
        refuse_unusable_engine(EngineSettings(launch="ray"), LoraSettings())


class ActorDiedError(Exception):
    """Ray's, for an actor that died at every try."""


# Plays Ray: what an actor is asked is computed when it is got.
RAY = SimpleNamespace(
    wait=lambda answers: (answers[:1], answers[1:]),
    get=lambda answer: answer(),
    exceptions=SimpleNamespace(RayActorError=ActorDiedError),
)


def actor(lives: int) -> Any:
    """An actor that replies with the question, and dies after so many answers. Questions about the mill are cut.

    A loss is the number of the question.
    """
    left = iter(range(lives))

    def live() -> None:
        if next(left, None) is None:
            raise ActorDiedError("The actor died.")

    def losses(lot: Any) -> list[float]:
        live()
        return [float(dialogue[-1]["content"][0]) for dialogue, _ in lot]

    def generate(lot: Any) -> Generated:
        live()
        replies = tuple(dialogue[-1]["content"] for dialogue in lot)
        return Generated(replies, len(lot), frozenset(i for i, reply in enumerate(replies) if "mill" in reply))

    asked = {"generate": generate, "losses": losses}
    return SimpleNamespace(
        **{name: SimpleNamespace(remote=lambda lot, *_, f=f: lambda: f(lot)) for name, f in asked.items()}
    )


def test_an_actor_that_stays_dead_is_left_out_and_what_came_is_kept(tiny_policy: Callable[..., LocalPolicy]) -> None:
    local, said = tiny_policy(), list[str]()
    questions = [f"{i}: who keeps the {('old ' * (i % 3))}{'mill' if i % 2 else 'dam'}?" for i in range(7)]
    asked = [[{"role": "user", "content": question}] for question in questions]
    replies = RayReplies(EngineSettings(), local.facts, local.adapters, DeviceSettings(batch_size=2), said.append)
    replies.ray, replies.told, replies.actors = RAY, {"device": "cpu"}, [actor(1), actor(9)]
    found = replies.generate(asked, adapter=None, max_new_tokens=4)
    assert found == Generated(tuple(questions), 7, frozenset({1, 3, 5}))
    assert said == ["note     left out: an actor on Ray (The actor died.)"]
    replies.actors = [actor(1), actor(1)]
    with pytest.raises(UnfinishedError, match="No actor on the Ray cluster is left") as stopped:
        replies.generate(asked, adapter=None, max_new_tokens=4)
    rows, kept = stopped.value.indices, stopped.value.generated
    assert len(rows) == 4
    assert kept.replies == tuple(questions[i] for i in rows)
    assert kept.truncated == {at for at, row in enumerate(rows) if row % 2}
    replies.actors = [actor(2), actor(1)]
    with pytest.raises(UnfinishedError) as stopped:
        replies.reference_losses(asked, questions, adapter=None)
    assert stopped.value.generated == [float(i) for i in stopped.value.indices]
    assert len(stopped.value.indices) == 6
    replies.actors = [actor(9), actor(9)]
    assert replies.reference_losses(asked, questions, adapter=None) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.engines
def test_ray_trains_and_replies_as_this_process(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text(json.dumps({"model": str(tiny_folder())}))
    run_with_ray(Path(__file__).with_name("ray_engines.py"), tmp_path, NSLORA_CACHE=str(tmp_path / "cache"))
    found = json.loads((tmp_path / "found.json").read_text())
    there, here = found.pop("fingerprints")
    assert there == f"{here}@ray"
    assert found.pop("actors") == 2
    assert len(found.pop("pids")) == 2
    assert found.pop("said") == []  # no actor was given up
    assert len(found) == 7
    assert len(set(found["one node"][0])) == 6  # each row has a reply of its own
    for what, (there, here) in found.items():
        assert there == (pytest.approx(here, abs=1e-6) if what.startswith("losses") else here), what
