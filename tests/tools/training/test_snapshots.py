"""Snapshots of a training job restore what was saved, to the bit."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nslora.tools.training.snapshots import SNAPSHOT, Snapshots, trainable


def stepped(model: Any, *, without_gradient: str = "") -> torch.optim.AdamW:
    """An optimizer that has done two steps on `model`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        for name, parameter in model.named_parameters():
            parameter.grad = None if name == without_gradient else torch.randn_like(parameter)
        optimizer.step()
    return optimizer


def model() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def test_a_snapshot_brings_back_parameters_moments_random_state_and_log(tmp_path: Path) -> None:
    trained, fresh = model(), model()
    optimizer = stepped(trained)
    Snapshots(tmp_path).after_step(optimizer, [{"loss": 2.0}, {"loss": 1.0}])
    drawn = torch.rand(3)
    progress = Snapshots(tmp_path)
    assert progress.restore(fresh) == 2
    assert progress.log == [{"loss": 2.0}, {"loss": 1.0}]
    again = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    progress.restore_optimizer(fresh, again)
    for (_, old), (_, new) in zip(trainable(trained), trainable(fresh), strict=True):
        assert torch.equal(old, new)
        assert optimizer.state[old].keys() == again.state[new].keys()
        assert all(torch.equal(value, again.state[new][key]) for key, value in optimizer.state[old].items())
    progress.restore_random()
    assert torch.equal(torch.rand(3), drawn)


def test_a_parameter_without_a_gradient_so_far_comes_back_without_moments(tmp_path: Path) -> None:
    trained, fresh = model(), model()
    Snapshots(tmp_path).after_step(stepped(trained, without_gradient="1.bias"), [{"loss": 1.0}])
    progress = Snapshots(tmp_path)
    progress.restore(fresh)
    again = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    progress.restore_optimizer(fresh, again)
    assert {name for name, parameter in fresh.named_parameters() if parameter not in again.state} == {"1.bias"}


def test_a_snapshot_of_another_layout_begins_the_job_again(tmp_path: Path) -> None:
    save_file({"adapter.00000": torch.zeros(2)}, tmp_path / SNAPSHOT, metadata={"log": "[]"})
    assert Snapshots(tmp_path).restore(model()) == 0
    assert not (tmp_path / SNAPSHOT).exists()
