"""Architectures other than Llama's: a tiny random model of each kind that once gave a wrong reply, or none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nslora.tools.errors import ModelError
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.decoder import changes_positions
from nslora.tools.inference.generation import replies_alike
from nslora.tools.inference.weights import ModelSource
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.testing.tiny_model import byte_tokenizer
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings

BASIC = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
GPT_NEO = {
    "hidden_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "intermediate_size": 96,
    "window_size": 100,
    "attention_types": [[["global", "local", "global"], 1]],
    "max_position_embeddings": 2048,
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 100,
}
# Siblings of another one here: they take a minute together, which `make test` has not.
RARE = ("gpt_neo", "mixtral", "phimoe", "minimax", "mpt", "gemma3n_text", "deepseek_v3")
SHAPES: dict[str, dict[str, Any]] = {
    "gemma2": {**BASIC, "head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0},
    "gpt_neo": GPT_NEO,
    "phi3": {**BASIC, "pad_token_id": 0, "rope_parameters": LONGROPE, "original_max_position_embeddings": 100},
    "mixtral": {**BASIC, **EXPERTS, "sliding_window": None},
    "qwen3_moe": {
        **BASIC,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    },
    "deepseek_v3": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "max_position_embeddings": 2048,
    },
    "phimoe": {**BASIC, **EXPERTS},
    "minimax": {
        **BASIC,
        **EXPERTS,
        "head_dim": 16,
        "block_size": 32,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "mpt": {"d_model": 64, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 2048},
    "mamba2": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 16,
        "expand": 2,
        "n_groups": 1,
        "chunk_size": 32,
    },
    "falcon_h1": {
        **BASIC,
        "head_dim": 16,
        "mamba_d_ssm": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 32,
    },
    "gemma3n_text": {
        **BASIC,
        "head_dim": 16,
        "num_hidden_layers": 5,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 260,
        "laurel_rank": 8,
        "num_kv_shared_layers": 2,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 5,
        "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
    },
}
LOUD = {"mpt": 0.3}  # tied to its embeddings, it says one letter at 0.15
SYSTEM = "Answer in few words, please, and say nothing else at all."
SHORT = ["Who?", "When was it?", "Where is the bridge over there?"]
LONG = [f"{question} {'It is a long story. ' * 4}" for question in SHORT]


def made(name: str, folder: Path, **lora: Any) -> LocalPolicy:
    """A policy over a random model whose weights are large enough for a wrong mask or position to show."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = byte_tokenizer(chat_template=True)
    shape = {"vocab_size": len(tokenizer), **SHAPES[name]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **shape))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.dim() > 1 and "conv" not in path:
                weight.normal_(std=LOUD.get(name, 0.15))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return policy_over(model, folder, tokenizer, **lora)


def policy_over(model: Any, folder: Path, tokenizer: Any = None, **lora: Any) -> LocalPolicy:
    settings = LoraSettings(**{"epochs": 3, "batch_size": 4, **lora})
    return LocalPolicy(
        model,
        tokenizer or byte_tokenizer(chat_template=True),
        source=ModelSource("made", "made"),
        adapters=AdapterStore(folder),
        lora=settings,
        device=DeviceSettings(device="cpu", threads=1),
    )


def asked(questions: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": each}] for each in questions]


def alone(policy: LocalPolicy, dialogue: list[dict[str, str]], adapter: str | None, tokens: int = 12) -> str:
    """The reply of transformers' own `generate` to one row."""
    ids = torch.tensor([policy.format.prompt_ids(dialogue)])
    with policy.using(adapter) as model, torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=list(policy.format.stop_ids),
            pad_token_id=policy.format.pad_id,
        )
    return policy.format.decode(output[0, ids.shape[1] :].tolist())


def rows() -> tuple[TrainingRow, ...]:
    return tuple(
        TrainingRow(tuple(dialogue), "Ada it was", f"row-{i}", "reference") for i, dialogue in enumerate(asked(SHORT))
    )


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.engines] * (each in RARE)) for each in SHAPES])
def test_replies_and_adapters_are_those_of_plain_libraries(name: str, tmp_path: Path) -> None:
    policy = made(name, tmp_path)
    for questions in (SHORT, [SHORT[0], *LONG]):  # what was found out about short rows is not believed of long ones
        expected = tuple(alone(policy, each, None) for each in asked(questions))
        assert policy.generate(asked(questions), adapter=None, max_new_tokens=12).replies == expected
        assert len(set(expected)) > 1  # else nothing could show
    fast = policy.train(TrainingJob(rows(), 3, seed=1))
    plain = made(name, tmp_path, fast=False).train(TrainingJob(rows(), 3, seed=1))
    if "shared prefix" not in fast.fast_path:
        assert fast.adapter == plain.adapter
    assert fast.epoch_losses == pytest.approx(plain.epoch_losses, rel=1e-4)
    for adapter in (fast.adapter, policy.train(TrainingJob(rows(), 1, seed=2, start=fast.adapter)).adapter):
        expected = tuple(alone(policy, each, adapter) for each in asked(SHORT))
        assert policy.generate(asked(SHORT), adapter=adapter, max_new_tokens=12).replies == expected
        assert policy.reference_losses(asked(SHORT), ["Ada it was"] * 3, adapter=adapter) != policy.reference_losses(
            asked(SHORT), ["Ada it was"] * 3, adapter=None
        )
    touched = {path.partition("layers.")[2].partition(".")[0] for path in trained(policy, fast.adapter)}
    assert touched in ({""}, {str(i) for i in policy.describe()["lora_targets"]["layers_to_transform"]})


def trained(policy: LocalPolicy, adapter: str) -> set[str]:
    """Names of the tensors that an adapter holds."""
    from safetensors.torch import load_file

    return set(load_file(policy.adapters.path(adapter) / "adapter_model.safetensors"))


def test_a_first_token_that_rounding_tipped_says_nothing_of_the_second(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = made("gemma2", tmp_path)
    prompts = [policy.format.prompt_ids(each) for each in asked(SHORT)]
    logits = torch.tensor([[[1.0, 1.0 - 1e-6], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])

    def compared(first: float, second: float) -> bool:
        alone = logits.clone()
        alone[0] = torch.tensor([[1.0, first], [second, 1.0]])
        answers = iter([logits, alone[:1], alone[1:]])
        monkeypatch.setattr("nslora.tools.inference.generation.first_logits", lambda *_: next(answers))
        return replies_alike(policy.base, prompts, 0, policy.format.pad_id)

    assert compared(1.0 + 1e-6, 0.5)  # tipped: what follows belongs to another reply
    assert not compared(1.0 - 2e-6, 0.5)
    assert not compared(1.1, 0.0)


def test_a_router_that_jitters_is_left_to_plain_training(tmp_path: Path) -> None:
    found = []
    for fast in (True, False):
        policy = made("mixtral", tmp_path, fast=fast)
        for module in policy.base.modules():
            if hasattr(module, "jitter_noise"):
                module.jitter_noise = 0.1
        found.append(policy.train(TrainingJob(rows(), 3, seed=1)))
    assert found[0].adapter == found[1].adapter


def test_where_frequencies_depend_on_the_length_rows_are_asked_one_by_one(tmp_path: Path) -> None:
    policy = made("phi3", tmp_path)
    assert changes_positions(policy.base, 101)
    assert not changes_positions(policy.base, 100)
    steps: list[int] = []
    policy.generate(asked(LONG), adapter=None, max_new_tokens=4, on_progress=lambda done, total: steps.append(done))
    assert steps == [1, 2, 3]
    answers = ["Ada it was"] * 3
    alone = [policy.reference_losses([each], answers[:1], adapter=None)[0] for each in asked(LONG)]
    assert policy.reference_losses(asked(LONG), answers, adapter=None) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("blocks_that_see", [3, 4])
def test_lora_sits_where_a_model_that_sees_writes(tmp_path: Path, blocks_that_see: int) -> None:
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {**BASIC, "vocab_size": 260, "head_dim": 16, "query_pre_attn_scalar": 16}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": blocks_that_see,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=255,
        boi_token_index=254,
        eoi_token_index=253,
    )
    policy = policy_over(AutoModelForCausalLM.from_config(config), tmp_path)
    result = policy.train(TrainingJob(rows(), 2, seed=1))
    names = trained(policy, result.adapter)
    assert names
    assert all("language_model" in path and ".layers.2." in path for path in names)
    assert policy.generate(asked(SHORT), adapter=result.adapter, max_new_tokens=8).replies == tuple(
        alone(policy, each, result.adapter, 8) for each in asked(SHORT)
    )


def test_what_a_generation_config_asks_for_beside_tokens_changes_no_reply(tmp_path: Path) -> None:
    policy = made("gemma2", tmp_path)
    expected = policy.generate(asked(SHORT), adapter=None, max_new_tokens=8).replies
    for name, value in {
        "use_cache": False,
        "cache_implementation": "static",
        "return_dict_in_generate": True,
        "stop_strings": ["x"],
    }.items():
        other = made("gemma2", tmp_path)
        setattr(other.base.generation_config, name, value)
        assert other.generate(asked(SHORT), adapter=None, max_new_tokens=8).replies == expected, name


def test_a_pad_token_without_an_embedding_is_not_used(tmp_path: Path) -> None:
    policy = made("gemma2", tmp_path)
    policy.tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    assert policy.tokenizer.pad_token_id >= policy.base.get_input_embeddings().num_embeddings
    assert policy.format.pad_id == policy.format.end_of_turn
    policy.generate(asked(SHORT), adapter=None, max_new_tokens=4)


def test_a_template_that_names_the_channel_of_a_reply_names_it_in_the_prompt_too() -> None:
    tokenizer = byte_tokenizer(chat_template=True)
    tokenizer.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn['role'] }}{% if turn['role'] == 'assistant' %}<|channel|>final"
        "{% endif %}<|message|>{{ turn['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    chat = ChatFormat(tokenizer)
    dialogue = [{"role": "user", "content": "Who?"}]
    assert chat.render(dialogue).endswith("<|im_start|>assistant<|channel|>final<|message|>")
    prompt, completion = chat.pair_ids(dialogue, "Ada")
    written = tokenizer.apply_chat_template([*dialogue, {"role": "assistant", "content": "Ada"}], tokenize=False)
    assert tokenizer.decode([*prompt, *completion]) == written


@pytest.mark.parametrize(
    "template",
    [
        "{% for turn in messages %}{{ turn['content'] | lower }}{% endfor %}",
        "{% for turn in messages if turn['role'] != 'assistant' %}{{ turn['content'] }}{% endfor %}",
        "{{ raise_exception('no dialogue is good enough') }}",
    ],
)
def test_a_template_that_cannot_write_replies_is_refused_in_a_sentence(template: str) -> None:
    tokenizer = byte_tokenizer(chat_template=True)
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="chat template"):
        ChatFormat(tokenizer).pair_ids([{"role": "user", "content": "Who?"}], "Ada")


def test_a_target_that_peft_does_not_take_in_this_model_is_refused_with_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"out_proj, on which LoRA cannot go .* in_proj"):
        made("mamba2", tmp_path, targets=["out_proj"])
