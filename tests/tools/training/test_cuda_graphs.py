"""CUDA graphs of a decoder: what is replayed, what is not, and what is said where none can be had.

Where no GPU is there a stand-in takes the place of torch's recorder: it copies what comes into the sample that it was
given, as a graph does, and computes there.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DEVICE

from nslora.tools.inference.decoder import blocks_of
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.training.batches import BatchPlan, PaddedLayout, TokenRow
from nslora.tools.training.cuda_graphs import CapturedDecoder, captured_decoder
from nslora.tools.training.settings import LoraSettings
from nslora.tools.training.trainer import kept_in_training

Make = Callable[..., LocalPolicy]
ON_CPU = DEVICE.device == "cpu"


class Recorder:
    """torch.cuda.make_graphed_callables without a GPU. off_by: what is wrong with its numbers."""

    def __init__(self) -> None:
        self.recorded, self.replayed, self.off_by = 0, 0, 0.0

    def __call__(self, module: Any, sample: tuple[Any, ...], **_: Any) -> Any:
        plain = module.forward
        self.recorded += 1

        def replay(*tensors: Any) -> Any:
            self.replayed += 1
            for mine, given in zip(sample, tensors, strict=True):
                mine.copy_(given)
            return plain(*sample) + self.off_by

        module.forward = replay
        return module


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    if ON_CPU:
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    return found


@pytest.fixture
def decoder(tiny_policy: Make) -> Any:
    """A tiny decoder in training, all of whose weights get gradients."""
    policy = tiny_policy()
    found, _ = blocks_of(policy.base)
    found.train()
    return found


def weights(decoder: Any) -> list[Any]:
    return [parameter.requires_grad_(True) for parameter in decoder.layers.parameters()]


def batch(*, padded: bool, rows: int = 2) -> dict[str, Any]:
    device = "cuda" if DEVICE.device == "cuda" else "cpu"
    mask = torch.ones(rows, 5, dtype=torch.long, device=device)
    if padded:
        mask[0, -1] = 0
    return {"input_ids": torch.arange(rows * 5, device=device).view(rows, 5), "attention_mask": mask}


def test_a_batch_like_the_recorded_one_is_replayed_and_any_other_is_not(recorder: Recorder, decoder: Any) -> None:
    own = decoder.forward
    wanted = decoder(**batch(padded=True), use_cache=False).last_hidden_state
    with captured_decoder(decoder) as captured:
        assert captured.record(batch(padded=True), weights(decoder), autocast=False) == ""
        checked = recorder.replayed
        found = decoder(**batch(padded=True), use_cache=False, labels=torch.ones(1), output_attentions=None)
        assert torch.equal(found.last_hidden_state, wanted)
        assert recorder.replayed == checked + 1
        decoder(**batch(padded=True, rows=1), use_cache=False)  # another shape
        decoder(**batch(padded=False), use_cache=False)  # no padding, hence other kernels
        decoder(**batch(padded=True), use_cache=True)  # asks for more than hidden states
        with torch.no_grad():
            decoder(**batch(padded=True), use_cache=False)
        decoder.eval()
        decoder(**batch(padded=True), use_cache=False)
        assert recorder.replayed == checked + 1
    assert decoder.forward == own
    assert not captured.graphs


def test_a_mask_that_masks_nothing_is_left_out_of_a_recording(recorder: Recorder, decoder: Any) -> None:
    with captured_decoder(decoder) as captured:
        assert captured.record(batch(padded=False), weights(decoder), autocast=False) == ""
        assert [name for kind in captured.graphs for name, _ in kind] == ["input_ids"]
        checked = recorder.replayed
        decoder(**batch(padded=False), use_cache=False)
        assert recorder.replayed == checked + 1


def test_cached_states_of_a_frozen_trunk_are_recorded_like_tokens(recorder: Recorder, decoder: Any) -> None:
    given = batch(padded=True)
    states = {
        "inputs_embeds": decoder.embed_tokens(given["input_ids"]).detach(),
        "attention_mask": given["attention_mask"],
    }
    wanted = decoder(**states, use_cache=False).last_hidden_state
    with captured_decoder(decoder) as captured:
        assert captured.record(states, weights(decoder), autocast=False) == ""
        checked = recorder.replayed
        assert torch.equal(decoder(**states, use_cache=False).last_hidden_state, wanted)
        decoder(**given, use_cache=False)  # tokens instead
        assert recorder.replayed == checked + 1


def test_a_recording_with_other_numbers_is_not_used(recorder: Recorder, decoder: Any) -> None:
    recorder.off_by = 1e-3
    with captured_decoder(decoder) as captured:
        assert (
            captured.record(batch(padded=True), weights(decoder), autocast=False)
            == "no CUDA graph (its numbers differ)"
        )
        assert not captured.graphs


def test_a_decoder_that_waits_for_the_gpu_is_not_recorded(
    recorder: Recorder, decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, modes = decoder.forward, [0]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def forward(**inputs: Any) -> Any:
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return plain(**inputs)

    captured = CapturedDecoder(forward, decoder)
    words = captured.record(batch(padded=True), weights(decoder), autocast=False)
    assert words == "no CUDA graph (RuntimeError: called a synchronizing CUDA operation)"
    assert recorder.recorded == 0
    assert modes[-1] == 0


def test_batches_of_a_plan_are_counted_with_and_without_padding() -> None:
    rows = tuple(TokenRow((1,) * length, (2,)) for length in (3, 3, 3, 2))
    plan = BatchPlan(rows, epochs=3, seed=0, pad_id=0, settings=LoraSettings(batch_size=2))
    kinds = PaddedLayout(plan).kinds()
    padded = {numbers: 3 in numbers for numbers in kinds}  # the short row pads its batch
    assert sorted(padded.values()) == [False, True]
    assert all(steps == 3 for steps in kinds.values())


def test_a_long_job_is_recorded_on_a_gpu_and_gives_the_adapter_of_plain_training(tiny_policy: Make) -> None:
    questions = ("Who keeps Arlen?", "Who keeps the lighthouse of Bevis?", "Who?", "Who keeps Corin Point?")
    rows = tuple(
        TrainingRow(({"role": "user", "content": question},), "Mara.", f"row-{i}", "reference")
        for i, question in enumerate(questions)
    )
    lora = {"batch_size": 2, "share_prefix": False, "early_stop_patience": None}
    fast = tiny_policy(**lora).train(TrainingJob(rows, 10, seed=3))
    plain = tiny_policy(**lora, fast=False).train(TrainingJob(rows, 10, seed=3))
    assert fast.steps == plain.steps == 20
    assert fast.adapter == plain.adapter
    assert "no CUDA graph" not in fast.fast_path
    assert ("CUDA graphs" in fast.fast_path) != ON_CPU


def test_a_model_kept_in_training_is_its_own_again_afterwards(tiny_policy: Make) -> None:
    model = tiny_policy().base
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    next(model.parameters()).grad = torch.zeros_like(next(model.parameters()))
    with kept_in_training(model, optimizer):
        assert model.train() is model
        assert model.training
        model.zero_grad()
        assert next(model.parameters()).grad is None
    model.eval()
    assert not any(module.training for module in model.modules())
