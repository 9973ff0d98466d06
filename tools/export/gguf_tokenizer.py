"""A tokenizer's metadata in a GGUF file, read from transformers' fast tokenizer.

llama.cpp knows two kinds here: `gpt2` (byte-level BPE; the split before the merges goes by a name) and `llama`
(SentencePiece BPE, whose order of merges goes by the pieces' scores).
"""

import json
from collections.abc import Mapping
from typing import Any

from nslora.tools.errors import ExportError

# llama.cpp's names of the splits before the merges (llama-vocab.cpp), by what tells their regular expressions apart.
GPT2_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT = "gpt-2", "llama-bpe", "qwen2"
LLAMA3_MARK, QWEN2_MARK = r"\p{N}{1,3}", r"|\p{N}|"
NEVER_MERGED = -1e9  # score of a piece that no merge makes


def add_tokenizer(writer: Any, tokenizer: Any, *, rows: int, end_of_turn: int) -> None:
    """Write tokens, their types, merges or scores, special tokens and the chat template.

    No special token is added to a text: the chat template writes its own, as in a run.

    Args:
        writer: A GGUFWriter.
        tokenizer: A fast tokenizer of transformers with the template to write.
        rows: Rows of the embedding; ids without a token are padded.
        end_of_turn: The token that ends a reply.

    Raises:
        ExportError: If llama.cpp has no such tokenizer.
    """
    from gguf import TokenType

    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(
            "The tokenizer has no tokenizer.json, from which GGUF metadata are read: export --merged, and convert the "
            "folder with llama.cpp's convert_hf_to_gguf.py."
        )
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    model, vocabulary = core["model"], dict(core["model"]["vocab"]) if core["model"]["type"] == "BPE" else {}
    if not vocabulary:
        raise ExportError(f"GGUF metadata of a {model['type']} tokenizer are not written here: BPE alone is.")
    pieces = bool(model.get("byte_fallback"))
    split = "default" if pieces else _split_of(core)
    texts, types = [f"[PAD{i}]" for i in range(rows)], [int(TokenType.UNUSED)] * rows
    for text, token in vocabulary.items():
        is_byte = pieces and len(text) == 6 and text.startswith("<0x")
        texts[token], types[token] = text, int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for added in core["added_tokens"]:
        special = added["special"] or added["id"] in tokenizer.all_special_ids
        texts[added["id"]] = added["content"]
        types[added["id"]] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    if pieces and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = int(TokenType.UNKNOWN)
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(texts)
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    if pieces:
        writer.add_token_scores(_scores(vocabulary, merges, rows))
        writer.add_add_space_prefix(_begins_with_a_space(core))
    writer.add_token_types(types)
    if not pieces:
        writer.add_token_merges(merges)
    for name in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None and token < rows:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_eot_token_id(end_of_turn)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _split_of(core: Mapping[str, Any]) -> str:
    """llama.cpp's name of the split before the merges. Raises ExportError if it has none."""
    written = json.dumps(core.get("pre_tokenizer") or {})
    splits = core.get("pre_tokenizer") or {}
    steps = splits.get("pretokenizers", [splits] if splits else [])
    kinds = [each["type"] for each in steps]
    plain = json.dumps(core.get("normalizer")) in ("null", '{"type": "NFC"}')  # llama.cpp does not normalise either
    if plain and kinds == ["Split", "ByteLevel"]:
        pattern = str(steps[0]["pattern"].get("Regex", ""))
        if QWEN2_MARK in pattern:
            return QWEN2_SPLIT
        if LLAMA3_MARK in pattern:
            return LLAMA3_SPLIT
    if plain and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if plain and kinds == ["ByteLevel"] and (steps[0].get("use_regex", True) or not core["model"]["merges"]):
        return GPT2_SPLIT
    raise ExportError(
        f"llama.cpp's name of this tokenizer's split is not known here ({written[:150]}): export --merged, and convert "
        "the folder with llama.cpp's convert_hf_to_gguf.py."
    )


def _scores(vocabulary: Mapping[str, int], merges: list[str], rows: int) -> list[float]:
    """SentencePiece merges the pair of highest score first: minus the rank of the first merge that makes a piece."""
    scores = [NEVER_MERGED] * rows
    for rank, merge in enumerate(merges):
        token = vocabulary.get(merge.replace(" ", ""))
        if token is not None and scores[token] == NEVER_MERGED:
            scores[token] = float(-rank)
    return scores


def _begins_with_a_space(core: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a space before a text."""
    written = json.dumps([core.get("normalizer"), core.get("pre_tokenizer")])
    return '"Prepend"' in written or '"prepend_scheme": "first"' in written or '"prepend_scheme": "always"' in written
