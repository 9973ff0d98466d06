"""The pair as a GGUF file, for llama.cpp, Ollama and LM Studio: Llama, Qwen2 and Gemma 3 shapes, in f16 or q8_0.

The tensors' names come from the package gguf; what differs by shape follows llama.cpp's convert_hf_to_gguf.py.
"""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from nslora.tools.errors import ExportError, SettingsError
from nslora.tools.export.gguf_tokenizer import add_tokenizer
from nslora.tools.export.merged import Merged
from nslora.tools.export.pair import refuse_full_disk

GgufType = Literal["f16", "q8_0"]
BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # of a weight; q8_0 has a scale of two bytes for 32 weights
SHAPES = {"llama": "LLAMA", "qwen2": "QWEN2", "gemma3_text": "GEMMA3"}  # transformers' name, gguf's
ROPE_SCALINGS = ("default", "linear", "llama3", "yarn")


def gguf_type_named(name: str) -> GgufType:
    """A type of weights by its name. Raises SettingsError if it is not written here."""
    if name in get_args(GgufType):
        return name  # type: ignore[return-value]
    raise SettingsError(f"--gguf-type {name}: wanted {' or '.join(get_args(GgufType))}.")


def refuse_shape(config: Any) -> None:
    """Raise ExportError if a model of this configuration cannot be written, or no model can."""
    if importlib.util.find_spec("gguf") is None:
        raise ExportError("GGUF files are written by the package gguf, which is not installed: pip install gguf.")
    kind = config.model_type
    if kind not in SHAPES:
        raise ExportError(
            f"A model of type {kind} is not written to GGUF here (Llama, Qwen2 and Gemma 3 are): export --merged, and "
            "convert the folder with llama.cpp's convert_hf_to_gguf.py."
        )
    ropes = _ropes(config)
    odd = [rope["rope_type"] for rope in ropes.values() if rope.get("rope_type", "default") not in ROPE_SCALINGS]
    if kind == "gemma3_text" and not _usual_gemma(config):
        odd.append("another order of sliding windows, or another scale of attention")
    if odd:
        raise ExportError(f"This {kind} has {odd[0]}, which is not written to GGUF here: export --merged.")


def write_gguf(whole: Merged, file: Path, kind: GgufType = "f16") -> None:
    """Write weights, tokenizer and chat template into one file.

    Norms and biases stay in float32. The file says temperature 0 to a server whose client names none.

    Args:
        whole: The merged model.
        file: A new file.
        kind: Type of the matrices.

    Raises:
        ExportError: If the shape or the tokenizer is not known, or the disk has no room.
    """
    from gguf import GGML_QUANT_VERSION, MODEL_ARCH, GGUFWriter, LlamaFileType

    config = whole.model.config
    refuse_shape(config)
    refuse_full_disk(file.parent, whole.model.num_parameters() * BYTES[kind], f"The {kind} file")
    architecture = MODEL_ARCH[SHAPES[config.model_type]]
    writer = GGUFWriter(file, config.model_type.removesuffix("_text"))
    try:
        writer.add_type("model")
        writer.add_name(whole.pair.name)
        writer.add_file_type(LlamaFileType.MOSTLY_F16 if kind == "f16" else LlamaFileType.MOSTLY_Q8_0)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        writer.add_sampling_temp(0.0)
        _add_shape(writer, config)
        rows = whole.model.get_input_embeddings().weight.shape[0]
        add_tokenizer(writer, whole.tokenizer, rows=rows, end_of_turn=whole.chat.end_of_turn)
        _add_tensors(writer, whole.model, architecture, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """The rotary embeddings by kind of layer; most models have one kind."""
    found = config.rope_parameters
    return found if "full_attention" in found else {"full_attention": found}


def _usual_gemma(config: Any) -> bool:
    """Whether every sixth layer sees the whole context and attention is scaled as llama.cpp assumes."""
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    usual = [(i + 1) % 6 != 0 for i in range(len(windows))]
    plain = config.attn_logit_softcapping is None and config.final_logit_softcapping is None
    return windows == usual and config.query_pre_attn_scalar == config.head_dim and plain


def _add_shape(writer: Any, config: Any) -> None:
    """What llama.cpp needs to know to build the graph."""
    from gguf import RopeScalingType

    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    ropes = _ropes(config)
    rope = ropes["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _add_tensors(writer: Any, model: Any, architecture: Any, kind: GgufType) -> None:
    """Every weight under gguf's name, in the order and scale that llama.cpp's graph of this shape wants."""
    import numpy as np
    from gguf import GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import quantize

    config = model.config
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    change = _change(config)
    if (factors := _llama3_factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for path, weight in model.state_dict().items():
        if tied and path.startswith("lm_head."):
            continue  # llama.cpp takes the embedding
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"The weight {path} has no place in a GGUF file of this shape: export --merged.")
        data = change(path, weight).float().numpy()
        matrix = data.ndim > 1
        dtype = GGMLQuantizationType.F32
        if matrix:
            fits = kind == "q8_0" and data.shape[-1] % 32 == 0
            dtype = GGMLQuantizationType.Q8_0 if fits else GGMLQuantizationType.F16
        writer.add_tensor(name, quantize(data, dtype), raw_dtype=dtype)


def _change(config: Any) -> Callable[[str, Any], Any]:
    """How a weight of this shape is written: as (path, tensor) -> tensor."""

    def rotated(path: str, weight: Any) -> Any:
        """llama.cpp rotates neighbouring pairs of a head, transformers its halves."""
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        found = next((heads[name] for name in heads if f".{name}." in path), None)
        if found is None:
            return weight
        halves = weight.reshape(found, 2, weight.shape[0] // found // 2, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape)

    def with_one(path: str, weight: Any) -> Any:
        """Gemma's norms multiply by one more than their weight."""
        return weight + 1 if path.endswith("norm.weight") else weight

    changes = {"llama": rotated, "gemma3_text": with_one}
    return changes.get(config.model_type, lambda _, weight: weight)


def _llama3_factors(config: Any) -> list[float] | None:
    """Llama 3.1's factors of the rotary frequencies, as its reference code computes them; None without such scaling."""
    rope = _ropes(config)["full_attention"]
    if rope.get("rope_type") != "llama3":
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    length = rope["original_max_position_embeddings"]
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / size)
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(float(factor))
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
