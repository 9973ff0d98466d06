"""A tiny random model for tests: seconds become milliseconds, and every code path is the real one."""

from pathlib import Path
from typing import Any, Literal

Family = Literal["llama", "qwen2", "gpt2"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def write_tiny_model(
    folder: Path,
    family: Family = "llama",
    *,
    blocks: int = 4,
    width: int = 32,
    chat_template: bool = True,
    seed: int = 0,
) -> Path:
    """Save a random model of a known shape, with a byte-level tokenizer, as `save_pretrained` would.

    folder: where to write it; returned, for `LocalPolicy.load(str(folder), ...)`.
    """
    import torch

    tokenizer = byte_tokenizer(chat_template)
    torch.manual_seed(seed)
    model = tiny_model(family, blocks, width, len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer(chat_template: bool) -> Any:
    """One token a byte and a few special ones: it can write any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    end = "<|im_end|>" if chat_template else "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=end, pad_token="<|pad|>", additional_special_tokens=["<|im_start|>"]
    )
    if chat_template:
        tokenizer.chat_template = CHATML
    return tokenizer


def tiny_model(family: Family, blocks: int, width: int, vocabulary: int) -> Any:
    """A randomly initialised causal model."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    if family == "gpt2":
        return AutoModelForCausalLM.from_config(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=width,
                n_layer=blocks,
                n_head=4,
                n_positions=2048,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    config = LlamaConfig(**shape) if family == "llama" else Qwen2Config(**shape)
    return AutoModelForCausalLM.from_config(config)
