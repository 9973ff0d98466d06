"""A tiny random model for tests: it runs the real code paths in milliseconds."""

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
    """Save a random causal model with a byte-level tokenizer, in the format of `save_pretrained`.

    Args:
        folder: Where to write.
        family: Architecture.
        blocks: Number of transformer blocks.
        width: Hidden size.
        chat_template: Whether the tokenizer has a chat template (ChatML).
        seed: Seed of the weights.

    Returns:
        The folder, for `LocalPolicy.load(str(folder), ...)`.
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
    """Create a tokenizer with one token per byte and a few special tokens; it can encode any text."""
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
    """Create a randomly initialised causal model; all dropout is off."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size = {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": blocks}
    size |= {"num_attention_heads": 4, "max_position_embeddings": 2048}
    if family == "gpt2":
        others: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        others = {"intermediate_size": 2 * width, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **size, **others))
