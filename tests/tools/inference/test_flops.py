"""Compute in model FLOPs: the formula, what counts, and a cap that is never overshot."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakePolicy

from nslora.graph.runs.run import Run
from nslora.tools.errors import SettingsError
from nslora.tools.inference.flops import TERA, FlopRates
from nslora.tools.inference.reply_cache import ReplyCache, token_counts
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.schema import answered
from nslora.tools.tasks.task import Task


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_token_costs_two_flops_per_weight_and_training_adds_what_gradients_pass_through(
    tiny_policy: Callable[..., LocalPolicy], family: str
) -> None:
    policy = tiny_policy(family, top_blocks=2)
    rates = FlopRates.of(policy.describe())
    # The reference: every matrix of the decoder's blocks by hand, and the head; look-ups cost nothing.
    matrices = {name: p.numel() for name, p in policy.base.named_parameters() if p.dim() == 2}
    blocks: dict[str, int] = {}
    for name, count in matrices.items():
        parts = name.split(".")
        if numbers := [part for part in parts if part.isdigit()]:
            blocks[numbers[0]] = blocks.get(numbers[0], 0) + count
    head = policy.base.get_output_embeddings().weight.numel()
    assert rates.forward == 2 * (sum(blocks.values()) + head)
    top = sorted(blocks, key=int)[-2:]
    assert rates.training == rates.forward + 2 * (sum(blocks[each] for each in top) + head)


def test_an_adapter_in_memory_does_not_change_the_rates(tiny_policy: Callable[..., LocalPolicy]) -> None:
    from nslora.tools.policy import TrainingJob, TrainingRow

    policy = tiny_policy()
    before = FlopRates.of(policy.describe())
    policy.train(TrainingJob((TrainingRow(({"role": "user", "content": "a"},), "b", "1", "reference"),), 1, seed=0))
    assert FlopRates.of(policy.describe()) == before


def test_token_counts_are_remembered(tmp_path: Path, tiny_policy: Callable[..., LocalPolicy]) -> None:
    policy, cache = tiny_policy(), ReplyCache(tmp_path / "replies.sqlite")
    question = [{"role": "user", "content": "how many?"}]
    dialogues = [question, answered(question, "two")]
    counts = token_counts(policy, cache, dialogues)
    assert counts == [policy.count_tokens(each) for each in dialogues]
    policy.count_tokens = None  # type: ignore[assignment, method-assign]
    assert token_counts(policy, cache, dialogues) == counts


def test_cached_replies_cost_what_new_ones_do(begin: Callable[..., Run]) -> None:
    first = begin("first", max_rounds=1).adapt().report
    again = begin("again", max_rounds=1).adapt().report
    assert (
        again["rounds"][0]["generated_tokens"] < first["rounds"][0]["generated_tokens"]
        or first["rounds"][0]["generated_tokens"] == 0
    )
    assert again["cost"]["tflop"] == first["cost"]["tflop"] > again["cost"]["start_tflop"] > 0


@pytest.mark.parametrize(("strategy", "share"), [("lora", 0.5), ("textgrad", 0.8), ("textgrad -> lora", 0.7)])
def test_a_cap_on_compute_is_never_overshot(begin: Callable[..., Run], strategy: str, share: float) -> None:
    free = begin("free", strategy=strategy, max_rounds=3).adapt().report["cost"]["tflop"]
    cap = share * free
    report = begin("capped", strategy=strategy, max_rounds=3, max_tflop=cap).adapt().report
    assert report["cost"]["tflop"] <= cap
    assert report["cost"]["tflop"] < free


def test_a_cap_below_the_first_evaluation_ends_the_run_with_its_start(begin: Callable[..., Run]) -> None:
    report = begin(max_tflop=1e-9).adapt().report
    assert report["rounds"] == []
    assert "TFLOP are spent" in report["stop"]


def test_the_cost_of_a_round_is_its_update_and_its_evaluation(begin: Callable[..., Run]) -> None:
    run = begin(strategy="lora", max_rounds=1)
    report = run.adapt().report
    record = report["rounds"][0]
    rates = FlopRates.of(run.workspace.policy.describe())
    trained = rates.training * record["trained_tokens"]
    assert record["flop"] > trained > 0
    assert report["cost"]["tflop"] == pytest.approx(report["cost"]["start_tflop"] + record["flop"] / TERA)


def test_a_cap_is_refused_where_the_policy_does_not_say_what_a_token_costs(keepers: Task, tmp_path: Path) -> None:
    run = Run.create(
        tmp_path / "run", task=keepers, model=FakePolicy(tmp_path / "adapters"), max_tflop=1.0, reuse_replies=False
    )
    with pytest.raises(SettingsError, match="does not say what a token costs"):
        run.adapt()


def test_without_remade_data_weights_learn_from_references(begin: Callable[..., Run]) -> None:
    run = begin(remade_per_row=0, max_rounds=2)
    report = run.adapt().report
    assert not (run.folder / "result" / "remade.jsonl").read_text()
    assert [each["new_rows"] for each in report["rounds"]] == [0, 0]
