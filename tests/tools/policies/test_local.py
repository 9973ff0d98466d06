"""The policy over tiny random models of three families."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conftest import DEVICE
from safetensors import safe_open
from safetensors.torch import load_file

from nslora.tools.errors import DamagedError, DivergedError, ModelError, TooLongError
from nslora.tools.inference.chat_template import PLAIN_STOP, ChatFormat
from nslora.tools.inference.weights import ModelSource
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.testing.tiny_model import byte_tokenizer
from nslora.tools.training.adapters import OPTIMIZER, WEIGHTS, AdapterStore
from nslora.tools.training.memory import job_bytes
from nslora.tools.training.settings import LoraSettings
from nslora.tools.training.snapshots import SNAPSHOT, Snapshots
from nslora.tools.training.trainer import NOT_REPEATABLE, check_loss
from nslora.tools.training.training_cache import job_sha256

Make = Callable[..., LocalPolicy]
ON_CPU = DEVICE.device == "cpu"
QUESTIONS = ["Who keeps the mill?", "When was the bridge opened?", "What hangs in the old hall of the town?", "Where?"]
ANSWERS = ["Orla Vint", "in 1864", "a brass lantern", "by the well"]


def dialogues(system: str = "Answer in few words, please.") -> list[list[dict[str, str]]]:
    return [[{"role": "system", "content": system}, {"role": "user", "content": q}] for q in QUESTIONS]


def rows() -> tuple[TrainingRow, ...]:
    return tuple(
        TrainingRow(tuple(d), a, str(i), "reference") for i, (d, a) in enumerate(zip(dialogues(), ANSWERS, strict=True))
    )


def plain_generate(policy: LocalPolicy, dialogue: list[dict[str, str]], max_new_tokens: int) -> str:
    """transformers' generate with nothing of ours around it but the chat template."""
    ids = torch.tensor([policy.format.prompt_ids(dialogue)], device=policy.device)
    output = policy.base.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(policy.format.stop_ids),
        pad_token_id=policy.format.pad_id,
    )
    return policy.format.decode(output[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_batched_replies_with_a_shared_prefix_are_those_of_plain_generate(tiny_policy: Make, family: str) -> None:
    policy = tiny_policy(family)
    expected = tuple(plain_generate(policy, dialogue, 12) for dialogue in dialogues())
    assert policy.generate(dialogues(), adapter=None, max_new_tokens=12).replies == expected


def test_a_model_without_a_chat_template_answers_a_plain_text(tiny_policy: Make) -> None:
    policy = tiny_policy("gpt2", chat_template=False)
    assert policy.format.render(dialogues()[0]).endswith("Question: Who keeps the mill?\nAnswer:")
    assert len(policy.generate(dialogues(), adapter=None, max_new_tokens=4).replies) == len(QUESTIONS)


def test_a_reply_that_the_model_did_not_end_is_told(tiny_policy: Make) -> None:
    policy = tiny_policy()
    assert policy.generate(dialogues(), adapter=None, max_new_tokens=2).truncated == frozenset(range(len(QUESTIONS)))
    first = [
        policy.base.generate(
            torch.tensor([policy.format.prompt_ids(dialogue)], device=policy.device), max_new_tokens=1, do_sample=False
        )[0, -1].item()
        for dialogue in dialogues()
    ]
    policy.format = ChatFormat(policy.format.tokenizer, (*policy.format.stop_ids, first[0]))
    assert policy.generate(dialogues(), adapter=None, max_new_tokens=2).truncated == {
        i for i, token in enumerate(first) if token != first[0]
    }
    plain = tiny_policy("gpt2", chat_template=False).format
    assert plain.ended(plain.tokenizer(f"ok{PLAIN_STOP} Who")["input_ids"])
    assert not plain.ended(plain.tokenizer("ok")["input_ids"])


def test_wide_models_take_smaller_steps_unless_told_otherwise(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_, told = LoraSettings(), LoraSettings(learning_rate=1e-4)
    assert [open_.rate_for(width) for width in (64, 576)] == [4e-3, 4e-3]
    assert open_.rate_for(4096) == pytest.approx(8.7e-4, rel=0.01)
    assert told.rate_for(4096) == 1e-4
    policy = tiny_policy()
    assert policy.describe()["learning_rate"] == 4e-3
    monkeypatch.setattr("nslora.tools.training.settings.MEASURED_WIDTH", 8)  # the tiny model is wide beside that
    rate = policy.describe()["learning_rate"]
    assert rate < 4e-3
    by_width = policy.train(TrainingJob(rows(), 1, seed=1)).adapter
    policy.lora = policy.lora.model_copy(update={"learning_rate": rate})
    assert policy.train(TrainingJob(rows(), 1, seed=1)).adapter == by_width


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_training_moves_every_adapter_weight_and_no_base_weight(tiny_policy: Make, family: str) -> None:
    policy = tiny_policy(family)
    before = {name: tensor.clone() for name, tensor in policy.base.state_dict().items()}
    first = policy.train(TrainingJob(rows(), 1, seed=1))
    last = policy.train(TrainingJob(rows(), 2, seed=2, start=first.adapter))
    old, new = (load_file(policy.adapters.path(name) / WEIGHTS) for name in (first.adapter, last.adapter))
    assert old.keys() == new.keys()
    assert all(not torch.equal(old[name], new[name]) for name in old)
    after = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in policy.base.state_dict().items()
        if "lora_" not in name
    }
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_shortcuts_and_plain_training_give_the_same_adapter(tiny_policy: Make, family: str) -> None:
    fast = tiny_policy(family, share_prefix=False, top_blocks=1).train(TrainingJob(rows(), 4, seed=3))
    plain = tiny_policy(family, fast=False, top_blocks=1).train(TrainingJob(rows(), 4, seed=3))
    assert plain.fast_path == "plain (switched off)"
    # GPT-2 adds positions to whatever embeddings it is given, so cached states would get them twice.
    assert ("frozen trunk" in fast.fast_path) == (family != "gpt2")
    assert fast.adapter == plain.adapter


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_prefix_computed_once_a_batch_changes_an_adapter_by_rounding_only(tiny_policy: Make, family: str) -> None:
    policy = tiny_policy(family)
    shared = policy.train(TrainingJob(rows(), 4, seed=3))
    plain = tiny_policy(family, fast=False).train(TrainingJob(rows(), 4, seed=3))
    assert "shared prefix of " in shared.fast_path
    assert shared.epoch_losses == pytest.approx(plain.epoch_losses, rel=1e-5)
    new, old = (load_file(policy.adapters.path(name) / WEIGHTS) for name in (shared.adapter, plain.adapter))
    assert all(torch.allclose(new[name], old[name], atol=2e-4) for name in old)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(tiny_policy: Make) -> None:
    policy = tiny_policy()
    once, again, other = (policy.train(TrainingJob(rows(), 2, seed=seed)).adapter for seed in (5, 5, 6))
    assert once == again != other


def test_an_adapter_in_force_leaves_the_base_as_it_was(tiny_policy: Make) -> None:
    policy = tiny_policy()
    before = policy.reference_losses(dialogues(), ANSWERS, adapter=None)
    adapter = policy.train(TrainingJob(rows(), 8, seed=1)).adapter
    adapted = policy.reference_losses(dialogues(), ANSWERS, adapter=adapter)
    assert sum(adapted) < sum(before)
    after = policy.reference_losses(dialogues(), ANSWERS, adapter=None)
    # A GPU's last digit depends on more than the numbers that go in.
    assert after == (before if policy.device == "cpu" else pytest.approx(before, rel=1e-6))


@pytest.mark.parametrize("killed_after", [3, 17, 22])  # the last one inside the last epoch
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_job_that_was_killed_goes_on_and_ends_with_the_same_adapter(
    tiny_policy: Make, tmp_path: Path, dropout: float, killed_after: int
) -> None:
    lora = {"batch_size": 1, "epochs": 6, "early_stop_patience": None, "dropout": dropout}
    policy = tiny_policy(**lora)
    whole = policy.train(TrainingJob(rows(), 6, seed=7))

    class Killed(Exception):  # noqa: N818
        pass

    def die(done: int, total: int, values: Any = None) -> None:
        if done == killed_after:
            raise Killed

    with pytest.raises(Killed):
        policy.train(TrainingJob(rows(), 6, seed=7, progress=tmp_path / "progress"), die)
    again = tiny_policy(**lora)
    resumed = again.train(TrainingJob(rows(), 6, seed=7, progress=tmp_path / "progress"))
    assert resumed.adapter == whole.adapter
    assert resumed.steps_done == whole.steps - killed_after
    assert resumed.fast_path == whole.fast_path
    assert resumed.epoch_losses == whole.epoch_losses


def test_each_step_is_saved_when_it_is_done_also_of_a_large_adapter(
    tiny_policy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    take = Snapshots.after_step

    def after_step(self: Snapshots, optimizer: Any, log: list[dict[str, float]]) -> None:
        take(self, optimizer, log)
        with safe_open(tmp_path / "progress" / SNAPSHOT, "pt") as file:
            saved.append(len(json.loads(file.metadata()["log"])))

    monkeypatch.setattr(Snapshots, "after_step", after_step)
    policy = tiny_policy(rank=256, batch_size=1, early_stop_patience=None)
    result = policy.train(TrainingJob(rows(), 3, seed=1, progress=tmp_path / "progress"))
    assert (tmp_path / "progress" / SNAPSHOT).stat().st_size > 1 << 20
    assert saved == list(range(1, result.steps + 1))


def test_a_job_that_is_stopped_keeps_its_last_step_whatever_snapshots_cost(
    tiny_policy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nslora.tools.training.snapshots.FREE_S", -1.0)
    monkeypatch.setattr("nslora.tools.training.snapshots.LARGEST_SHARE", -1.0)

    def stop(done: int, total: int, values: Any = None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    lora = {"batch_size": 1, "early_stop_patience": None}
    with pytest.raises(KeyboardInterrupt):
        tiny_policy(**lora).train(TrainingJob(rows(), 2, seed=1, progress=tmp_path / "progress"), stop)
    resumed = tiny_policy(**lora).train(TrainingJob(rows(), 2, seed=1, progress=tmp_path / "progress"))
    assert resumed.steps_done == resumed.steps - 3


def test_a_snapshot_that_was_cut_off_begins_the_job_again(tiny_policy: Make, tmp_path: Path) -> None:
    whole = tiny_policy().train(TrainingJob(rows(), 2, seed=7))
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / SNAPSHOT).write_bytes(b"half a file")
    again = tiny_policy().train(TrainingJob(rows(), 2, seed=7, progress=tmp_path / "progress"))
    assert (again.adapter, again.steps_done) == (whole.adapter, whole.steps)


def test_a_job_goes_on_from_the_optimizer_state_of_its_start(tiny_policy: Make) -> None:
    policy = tiny_policy()
    first = policy.train(TrainingJob(rows(), 2, seed=1))
    second = policy.train(TrainingJob(rows(), 2, seed=2, start=first.adapter))
    before, after = (load_file(policy.adapters.path(each.adapter) / OPTIMIZER) for each in (first, second))
    steps = {float(value) for name, value in after.items() if name.endswith(".step")}
    assert steps == {float(first.steps + second.steps)}
    (policy.adapters.path(first.adapter) / OPTIMIZER).unlink()
    assert policy.train(TrainingJob(rows(), 2, seed=2, start=first.adapter)).adapter != second.adapter
    assert before.keys() == after.keys()


def test_an_adapter_that_is_there_is_never_written_again(tiny_policy: Make) -> None:
    policy = tiny_policy()
    name = policy.train(TrainingJob(rows(), 1, seed=1)).adapter
    weights = policy.adapters.path(name) / WEIGHTS
    before = (weights.stat().st_ino, weights.stat().st_mtime_ns)
    assert policy.train(TrainingJob(rows(), 1, seed=1)).adapter == name
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == before
    assert [each.name for each in policy.adapters.folder.iterdir()] == [name]


def test_a_diverged_job_stores_nothing(tiny_policy: Make) -> None:
    policy = tiny_policy(max_loss_nats=0.01)
    with pytest.raises(DivergedError, match="learning_rate"):
        policy.train(TrainingJob(rows(), 1, seed=1))
    assert not list(policy.adapters.folder.glob("*"))


def test_an_adapter_is_plain_peft_and_names_no_folder_of_a_machine(
    tiny_policy: Make, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = tiny_policy()
    adapter = policy.train(TrainingJob(rows(), 4, seed=1)).adapter
    policy.adapters.export(adapter, tmp_path / "exported")
    assert {file.suffix for file in (tmp_path / "exported").iterdir()} == {".safetensors", ".json"}
    config = (tmp_path / "exported" / "adapter_config.json").read_text()
    assert str(tiny_folder().parent) not in config
    base = AutoModelForCausalLM.from_pretrained(tiny_folder()).to(policy.device)
    plain = PeftModel.from_pretrained(base, tmp_path / "exported")
    ids = torch.tensor([policy.format.prompt_ids(dialogues()[0])], device=policy.device)
    with policy.using(adapter) as model:
        assert torch.equal(plain(ids).logits, model(ids).logits)


def test_the_base_answers_as_before_after_a_job_and_after_one_that_diverged(tiny_policy: Make) -> None:
    policy = tiny_policy()
    before = policy.generate(dialogues(), adapter=None, max_new_tokens=6).replies
    adapter = policy.train(TrainingJob(rows(), 1, seed=1)).adapter
    assert policy.generate(dialogues(), adapter=None, max_new_tokens=6).replies == before
    policy.lora = policy.lora.model_copy(update={"max_loss_nats": 0.01})
    with pytest.raises(DivergedError):
        policy.train(TrainingJob(rows(), 1, seed=2, start=adapter))
    assert policy.generate(dialogues(), adapter=None, max_new_tokens=6).replies == before


def test_a_damaged_adapter_is_named_and_not_used(tiny_policy: Make) -> None:
    policy = tiny_policy()
    adapter = policy.train(TrainingJob(rows(), 1, seed=1)).adapter
    weights = policy.adapters.folder / adapter / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DamagedError, match="damaged"):
        policy.generate(dialogues(), adapter=adapter, max_new_tokens=2)


def test_a_question_that_does_not_fit_the_context_is_refused(tiny_policy: Make) -> None:
    with pytest.raises(ModelError, match="context holds 2048"):
        tiny_policy().generate([[{"role": "user", "content": "x" * 3000}]], adapter=None, max_new_tokens=2)


def test_a_job_that_no_longer_learns_ends_early_and_resumes_alike(tiny_policy: Make, tmp_path: Path) -> None:
    lora = {"learning_rate": 1e-9, "schedule": "constant", "epochs": 12}  # nothing can fall by 2 %
    result = tiny_policy(**lora).train(TrainingJob(rows(), 12, seed=1))
    assert result.steps == 3  # of one step an epoch: two epochs without a drop after the first
    assert len(result.epoch_losses) == 3
    assert tiny_policy(**lora, early_stop_patience=None).train(TrainingJob(rows(), 12, seed=1)).steps == 12


def test_a_job_over_rows_known_by_heart_ends_after_an_epoch(tiny_policy: Make) -> None:
    known = {"learning_rate": 1e-9, "epochs": 12, "early_stop_loss_nats": 100.0}  # any loss is below it
    assert len(tiny_policy(**known).train(TrainingJob(rows(), 12, seed=1)).epoch_losses) == 1
    assert tiny_policy(**known, early_stop_patience=None).train(TrainingJob(rows(), 12, seed=1)).steps == 12


def test_a_job_that_does_not_fit_says_what_to_lower(tiny_policy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nslora.tools.training.memory.free_bytes", lambda model: 1000)
    policy = tiny_policy()
    with pytest.raises(ModelError, match=r"needs about .* GiB .* lower lora.batch_size or lora.top_blocks"):
        policy.train(TrainingJob(rows(), 1, seed=1))
    assert not list(policy.adapters.folder.glob("*"))


def test_little_memory_makes_generation_batches_small_and_changes_no_reply(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    expected = policy.generate(dialogues(), adapter=None, max_new_tokens=8).replies
    seen: list[int] = []
    monkeypatch.setattr("nslora.tools.inference.memory.free_bytes", lambda model: 1)
    policy.generate(dialogues(), adapter=None, max_new_tokens=8, on_progress=lambda done, total: seen.append(done))
    assert seen == ([1, 2, 3, 4] if ON_CPU else [4])  # a GPU says itself when memory is short
    assert policy.generate(dialogues(), adapter=None, max_new_tokens=8).replies == expected


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]


def limit_rows(policy: LocalPolicy, monkeypatch: pytest.MonkeyPatch, most: int, error: RuntimeError) -> list[int]:
    """Let the base run out of memory on more rows than `most`; returns the rows of each forward pass that fits."""
    fitting: list[int] = []
    forward = policy.base.forward

    def limited(*args: Any, **inputs: Any) -> Any:
        if (rows_given := len(inputs["input_ids"])) > most:
            raise error
        fitting.append(rows_given)
        return forward(*args, **inputs)

    monkeypatch.setattr(policy.base, "forward", limited)
    return fitting


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_batch_that_runs_out_of_memory_is_halved_and_changes_no_reply(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    policy, seen = tiny_policy(), []
    expected = policy.generate(dialogues(), adapter=None, max_new_tokens=8).replies
    fitting = limit_rows(policy, monkeypatch, 2, error)
    found = policy.generate(
        dialogues(), adapter=None, max_new_tokens=8, on_progress=lambda done, total: seen.append(done)
    )
    assert found.replies == expected
    assert seen == [2, 4]
    assert set(fitting) == {1, 2}  # one row: the shared prefix


def test_rows_that_were_answered_before_memory_ran_out_are_not_answered_again(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, seen = tiny_policy(), []
    policy.batch_size = 2
    expected = policy.generate(dialogues(), adapter=None, max_new_tokens=4).replies

    def watch(done: int, total: int) -> None:
        seen.append(done)
        if done == 2:
            limit_rows(policy, monkeypatch, 1, OUT_OF_MEMORY[0])

    assert policy.generate(dialogues(), adapter=None, max_new_tokens=4, on_progress=watch).replies == expected
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_references_that_run_out_of_memory_are_scored_in_smaller_batches(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    policy = tiny_policy()
    whole = policy.reference_losses(dialogues(), ANSWERS, adapter=None)
    fitting = limit_rows(policy, monkeypatch, 1, error)
    assert policy.reference_losses(dialogues(), ANSWERS, adapter=None) == pytest.approx(whole, rel=1e-5)
    assert set(fitting) == {1}


def test_a_single_row_that_runs_out_of_memory_is_an_error_with_a_remedy(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    policy.generate(dialogues(), adapter=None, max_new_tokens=2)  # probes are done
    monkeypatch.setattr("nslora.tools.inference.generation.shareable_prefix", lambda *_: 0)
    limit_rows(policy, monkeypatch, 0, OUT_OF_MEMORY[0])
    with pytest.raises(ModelError, match="one row ran out of memory: shorten"):
        policy.generate(dialogues()[:1], adapter=None, max_new_tokens=2)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_neither_padding_nor_the_batch_changes_a_reply(tiny_policy: Make, family: str) -> None:
    policy = tiny_policy(family)
    replies = set()
    for size in (1, 2, 3, 4):
        policy.batch_size = size
        replies.add(policy.generate(dialogues(), adapter=None, max_new_tokens=12).replies)
    assert len(replies) == 1


def test_a_model_without_kernels_of_a_fixed_order_trains_all_the_same(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tiny_policy().train(TrainingJob(rows(), 2, seed=1))
    policy, asked = tiny_policy(), []

    def none_there(device: object) -> NoReturn:
        asked.append(device)
        raise RuntimeError("some_backward_cuda does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr("nslora.tools.training.trainer.fixed_order_of_sums", none_there)
    result = policy.train(TrainingJob(rows(), 2, seed=1))
    if policy.device == "cpu":  # on a GPU the usual kernels round in another way
        assert result.adapter == wanted.adapter
    assert NOT_REPEATABLE in result.fast_path
    assert NOT_REPEATABLE not in wanted.fast_path
    policy.train(TrainingJob(rows(), 1, seed=2))
    assert len(asked) == 1


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"top_blocks": 4},
        {"targets": ["q_proj"]},
        {"schedule": "cosine"},
        {"dropout": 0.1},
    ],
)
def test_every_setting_of_lora_trains(tiny_policy: Make, lora: dict[str, object]) -> None:
    result = tiny_policy(**lora).train(TrainingJob(rows(), 3, seed=1))
    assert result.epoch_losses[-1] < result.epoch_losses[0]


def test_a_target_that_no_block_has_is_refused_with_what_it_has(tiny_policy: Make) -> None:
    with pytest.raises(ModelError, match="q_proj"):
        tiny_policy(targets=["query"])


def policy_of(model: object, folder: Path, **lora: object) -> LocalPolicy:
    """A policy over a model that is made here."""
    settings = LoraSettings(**{"epochs": 3, "batch_size": 4, **lora})  # type: ignore[arg-type]
    return LocalPolicy(
        model,
        byte_tokenizer(chat_template=True),
        source=ModelSource("made", "made"),
        adapters=AdapterStore(folder),
        lora=settings,
        device=DeviceSettings(device="cpu", threads=1),
    )


SHAPE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize("window", [None, 24])
def test_a_sliding_window_changes_no_reply(tmp_path: Path, window: int | None) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    policy = policy_of(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=window)), tmp_path)
    expected = tuple(plain_generate(policy, dialogue, 12) for dialogue in dialogues())
    assert policy.generate(dialogues(), adapter=None, max_new_tokens=12).replies == expected
    assert any(name.startswith("prefix cache") for name in policy._found_exact) == (window is None)


def test_rows_beyond_a_sliding_window_are_trained_in_the_plain_way(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    found = []
    for fast in (True, False):
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=24))
        found.append(policy_of(model, tmp_path, fast=fast, top_blocks=1).train(TrainingJob(rows(), 3, seed=3)))
    assert "sliding window" in found[0].fast_path
    assert found[0].adapter == found[1].adapter


def test_a_mixture_of_experts_trains_and_counts_the_experts_that_a_token_meets(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=None))
    policy = policy_of(model, tmp_path, top_blocks=1)
    result = policy.train(TrainingJob(rows(), 3, seed=3))
    assert "shared prefix" in result.fast_path
    assert result.epoch_losses[-1] < result.epoch_losses[0]
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    embeddings = model.get_input_embeddings().weight.numel()
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and "lora_" not in name)
    assert policy.describe()["forward_flop_per_token"] == 2 * (matrices - embeddings - experts / 2)


def test_logits_that_a_model_scales_are_scaled_when_references_are_scored(tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    policy = policy_of(GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)).eval(), tmp_path)
    for dialogue, answer, loss in zip(
        dialogues(), ANSWERS, policy.reference_losses(dialogues(), ANSWERS, adapter=None), strict=True
    ):
        prompt, completion = policy.format.pair_ids(dialogue, answer)
        with torch.no_grad():
            logits = policy.base(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(completion))
        assert loss == pytest.approx(float(wanted), rel=1e-4)


def test_little_memory_makes_scoring_batches_small_and_changes_no_loss(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    whole = policy.reference_losses(dialogues(), ANSWERS, adapter=None)
    fitting = limit_rows(policy, monkeypatch, 4, OUT_OF_MEMORY[0])  # limits nothing, and tells the batches
    monkeypatch.setattr("nslora.tools.inference.memory.free_bytes", lambda model: 1)
    assert policy.reference_losses(dialogues(), ANSWERS, adapter=None) == pytest.approx(whole, rel=1e-5)
    assert max(fitting) == (1 if ON_CPU else 4)


def test_blocks_that_differ_are_all_searched_for_their_linear_layers(tmp_path: Path) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    shape = {**SHAPE, "layer_types": ["conv", "full_attention", "conv"]}
    model = Lfm2ForCausalLM(Lfm2Config(**shape))
    assert {"q_proj", "in_proj"} <= set(policy_of(model, tmp_path, top_blocks=2).facts.targets["target_modules"])
    assert policy_of(model, tmp_path, top_blocks=2, targets=["q_proj"]).facts.targets["target_modules"] == ["q_proj"]


def test_a_job_elsewhere_or_in_other_modules_is_another_job(tiny_policy: Make) -> None:
    policy = tiny_policy()
    job, facts = TrainingJob(rows(), 3, seed=1), {**policy.describe(), "fingerprint": policy.fingerprint}
    name = job_sha256(job, policy.lora, facts)
    assert name == job_sha256(job, policy.lora, json.loads(json.dumps(facts)))  # as a replay knows it
    for change in ({"device": "elsewhere"}, {"lora_targets": {"layers_to_transform": [3]}}, {"fingerprint": "other"}):
        assert job_sha256(job, policy.lora, {**facts, **change}) != name


def test_a_reply_is_tokenised_behind_its_prompt() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*"▁abcdefghijklmnopqrstuvwxyz:QA\n", "</s>"]
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for turn in messages %}{{ turn['content'] }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    spaced = ChatFormat(tokenizer)
    _, completion = spaced.pair_ids([{"role": "user", "content": "who"}], "ok")
    assert [letters[i] for i in completion] == ["o", "k", "</s>"]


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{{ strftime_now('%d %b %Y') }} {{ messages[-1]['content'] }}", "26 Jul 2024 Who keeps the mill?"),
        (
            "{{ messages[-1]['content'] }}{% if enable_thinking is defined and enable_thinking is false %}<no>"
            "{% endif %}",
            "Who keeps the mill?<no>",
        ),
    ],
)
def test_a_template_gets_a_date_that_stays_and_no_thinking(tiny_policy: Make, template: str, written: str) -> None:
    policy = tiny_policy()
    policy.tokenizer.chat_template = template
    assert ChatFormat(policy.tokenizer).render([{"role": "user", "content": QUESTIONS[0]}]) == written


def test_a_model_whose_cache_cannot_be_copied_answers_without_it(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    expected = policy.generate(dialogues(), adapter=None, max_new_tokens=8).replies

    def refuse(prefix: object, count: int) -> object:
        if prefix is not None:
            raise NotImplementedError
        return None

    monkeypatch.setattr("nslora.tools.inference.generation.copied", refuse)
    again = tiny_policy()
    assert again.generate(dialogues(), adapter=None, max_new_tokens=8).replies == expected
    found = {name.partition(" below ")[0]: exact for name, exact in again._found_exact.items()}
    assert found == {"prefix cache": False, "padding": True}


def test_a_base_with_dropout_below_the_cut_trains_in_the_plain_way_there(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    found = []
    for fast in (True, False):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=0.3, attn_implementation="eager"))
        found.append(policy_of(model, tmp_path, fast=fast, top_blocks=1).train(TrainingJob(rows(), 3, seed=3)))
    assert found[0].fast_path == "compact head"
    assert found[0].adapter == found[1].adapter


def test_plain_training_is_known_to_need_every_position_of_the_vocabulary(tiny_policy: Make) -> None:
    from nslora.tools.training.batches import BatchPlan, PaddedLayout, TokenRow

    policy = tiny_policy()
    layout = PaddedLayout(BatchPlan((TokenRow((1,) * 90, (2,) * 10),), 1, 0, 0, policy.lora))
    need = {compact: job_bytes(policy.base, layout, 1, cached=False, compact=compact) for compact in (True, False)}
    vocabulary = policy.base.config.vocab_size
    assert need[False] - need[True] == 90 * vocabulary * 4 * 4  # positions, float32, four copies


def test_max_steps_end_a_job(tiny_policy: Make) -> None:
    result = tiny_policy(batch_size=1, max_steps=5).train(TrainingJob(rows(), 3, seed=1))
    assert (result.steps, len(result.epoch_losses)) == (5, 2)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 20.1])
def test_a_loss_that_is_no_number_or_above_the_bound_is_a_diverged_job(loss: float) -> None:
    with pytest.raises(DivergedError, match="at step 3"):
        check_loss(loss, 20.0, 3)
    check_loss(19.9, 20.0, 3)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>"
        "{% endif %}"
        "{% endfor %}",
    ],
)
def test_a_template_without_system_turns_says_it_in_the_first_user_turn(tiny_policy: Make, template: str) -> None:
    policy = tiny_policy()
    policy.tokenizer.chat_template = template
    assert ChatFormat(policy.tokenizer).render(dialogues()[0]) == (
        "<|im_start|>user Answer in few words, please.\n\nWho keeps the mill?<|im_end|><|im_start|>assistant"
    )


def test_a_chat_template_and_a_generation_config_are_part_of_the_fingerprint(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    def found() -> str:
        return LocalPolicy.load(str(model), adapters=tmp_path / "a", device=DeviceSettings(device="cpu")).fingerprint

    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    seen = {found()}
    for name, old, new in (
        ("chat_template.jinja", "<|im_end|>", "<|im_end|> "),
        ("generation_config.json", "{", '{"repetition_penalty": 1.1,'),
    ):
        path = model / name
        path.write_text(path.read_text().replace(old, new, 1))
        seen.add(found())
    assert len(seen) == 3


def test_weights_and_devices_that_cannot_be_used_are_named(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    with pytest.raises(ModelError, match=r"device\.device=nowhere"):
        LocalPolicy.load(str(model), adapters=tmp_path / "a", device=DeviceSettings(device="nowhere"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        LocalPolicy.load(str(model), adapters=tmp_path / "a", device=DeviceSettings(device="cpu"))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_reference_beyond_the_context_is_scored_in_part_and_not_trained_on(tiny_policy: Make, family: str) -> None:
    policy = tiny_policy(family)
    asked, long = [{"role": "user", "content": "a"}], "x" * (policy.context_tokens + 1)
    (loss,) = policy.reference_losses([asked], [long], adapter=None)
    assert loss > 0
    with pytest.raises(TooLongError, match="shorten or remove"):
        policy.train(TrainingJob((TrainingRow(asked, long, "train-1", "reference"),), 1, seed=0))


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_job_that_finds_no_memory_says_what_to_lower(
    tiny_policy: Make, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr("nslora.tools.training.trainer.exact_shortcuts", full)
    with pytest.raises(ModelError, match=r"lower lora\.batch_size"):
        tiny_policy().train(TrainingJob(rows(), 1, seed=1))


def test_a_transcript_is_counted_as_it_goes_through_the_model(tiny_policy: Callable[..., LocalPolicy]) -> None:
    """By hand, in bytes: of the tiny tokenizer each byte and each mark of a turn is a token."""
    policy = tiny_policy()
    question = [{"role": "user", "content": "Who?"}]
    turn = 1 + len("user\nWho?") + 1 + len("\n")
    opening = 1 + len("assistant\n")
    assert policy.count_tokens(question) == turn + opening
    assert policy.count_tokens([*question, {"role": "assistant", "content": "Ada"}]) == turn + opening + 3 + 1
