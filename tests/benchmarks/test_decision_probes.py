"""Probes of a decision tree's nodes: the weights of an earlier epoch, and the two variances of the reward."""

from collections.abc import Callable
from pathlib import Path

import pytest
from decision_probes import epochs_kept, first_rise, prompts_beside, variances, weights_of

from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.prompt import Demonstration, Prompt


def test_the_weights_after_an_epoch_are_those_of_a_job_that_ended_there(
    tiny_policy: Callable[..., LocalPolicy], tmp_path: Path
) -> None:
    """With a constant rate: else the rate of a step depends on the length of the job."""
    policy = tiny_policy(schedule="constant", warmup_share=0.0, learning_rate=3e-2, early_stop_patience=None)
    question = ({"role": "user", "content": "Who built the mill?"},)
    rows = tuple(TrainingRow(question, f"Ada Brandt {i}", str(i), "reference") for i in range(6))

    def losses(adapter: str) -> list[float]:
        return policy.reference_losses([question], ["Ada Brandt 1"], adapter=adapter)

    with epochs_kept(tmp_path / "epochs"):
        long = policy.train(TrainingJob(rows, 3, seed=1))
    short = policy.train(TrainingJob(rows, 2, seed=1))
    kept = tmp_path / "epochs" / long.adapter
    assert sorted(file.name for file in kept.iterdir()) == ["1.safetensors", "2.safetensors"]
    whole = losses(long.adapter)
    with weights_of(policy, long.adapter, kept / "2.safetensors") as found:
        assert found
        assert losses(long.adapter) == losses(short.adapter) != whole
    assert losses(long.adapter) == whole
    with weights_of(policy, long.adapter, kept / "9.safetensors") as found:
        assert not found


def test_a_job_is_stopped_after_the_first_epoch_whose_held_out_loss_is_higher() -> None:
    for losses, epoch in (
        ([3.0, 2.0, 2.5, 1.0], 2), ([3.0, 2.0, 1.0], None), ([1.0, 2.0], 1), ([3.0, None, 1.0], None), ([1.0], None)
    ):  # fmt: skip
        assert first_rise(losses) == epoch


def test_variance_among_prompts_is_free_of_that_among_replies() -> None:
    """By hand: means 0.25 and 0.75 have variance 0.125; each row's pair of replies 0, 0.5 or 0.5, 1 has 0.125."""
    low, high = [[0.0, 0.5], [0.5, 0.0]], [[0.5, 1.0], [1.0, 0.5]]
    found = variances([low, high])
    assert found["among_replies"] == pytest.approx(0.125)
    assert found["among_prompts"] == pytest.approx(0.125 - 0.125 / 4)
    assert variances([low, low])["among_prompts"] < 0


def test_the_prompts_beside_an_edit_are_its_parts() -> None:
    pair = (Demonstration("Q?", "A"),)
    edit = Prompt(system="Be brief.", demonstrations=pair)
    assert prompts_beside(Prompt(), edit) == [
        Prompt(), edit, Prompt(system="Be brief."), Prompt(demonstrations=pair)
    ]  # fmt: skip
    assert len(prompts_beside(Prompt(), Prompt(system="Be brief."))) == 2
