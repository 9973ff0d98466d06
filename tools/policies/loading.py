"""Why a model cannot be loaded, in one sentence: what it is, or which package it needs."""

import re
from typing import Any

from nslora.tools.errors import ModelError, first_line
from nslora.tools.inference.weights import ModelSource

UNLOADABLE = (OSError, ValueError, ImportError)
# Packages that transformers asks for only when a model needs them, as pip calls them; in its messages, some have a `_`.
OPTIONAL_PACKAGES = re.compile(
    "sentencepiece|tiktoken|protobuf|bitsandbytes|gptqmodel|optimum|autoawq|compressed-tensors|flash-attn|"
    "mistral-common|hqq|torchao|kernels|gguf|einops|mamba-ssm|causal-conv1d"
)


def missing_package(error: Exception) -> str | None:
    """Return the package whose absence an error of transformers reports, as pip calls it; None if it reports none."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.removeprefix("google.").partition(".")[0].replace("_", "-")
    said = str(error).lower().replace("_", "-")
    asks = isinstance(error, ImportError) or "install" in said or "requires" in said
    named = re.search(r"pip install (?:-\S+ )*['\"]?([a-z0-9_.-]+)", said)
    if asks and named and named[1] != "transformers":  # which is there, and does not know the architecture
        return named[1]
    found = OPTIONAL_PACKAGES.search(said) if asks else None
    return found[0] if found else None


def unloadable(source: ModelSource, error: Exception) -> ModelError:
    """Return the error that says why this model cannot be loaded, and what to do."""
    why = f"The model '{source.name}' cannot be loaded from {source.location}"
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{why}: it runs code of its own, which nslora does not do: name a model that transformers knows."
        )
    if package := missing_package(error):
        return ModelError(f"{why}: it needs the package {package}: pip install {package}.")
    return ModelError(f"{why}: {first_line(error)}")


def refuse_encoder(source: ModelSource, config: Any) -> None:
    """Check that a model continues text. Raises ModelError if it is an encoder (BERT) or an encoder-decoder (T5)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    if config.is_encoder_decoder or (config.model_type in ENCODERS and not getattr(config, "is_decoder", False)):
        kind = "an encoder-decoder" if config.is_encoder_decoder else "an encoder"
        raise ModelError(
            f"The model '{source.name}' ({config.model_type}) is {kind}, but a policy continues text: name a causal "
            "model, such as Qwen/Qwen2.5-0.5B-Instruct."
        )


def refuse_missing_quantizer(config: Any) -> None:
    """Check that the package which reads a model's quantised weights is there, and runs on this machine.

    Raises:
        ImportError: If it is not there; the message names it.
        ValueError: If transformers does not know the format, or the package needs a GPU.
    """
    if quantization := getattr(config, "quantization_config", None):
        from transformers.quantizers import AutoHfQuantizer

        try:
            AutoHfQuantizer.from_config(quantization, pre_quantized=True).validate_environment(device_map=None)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
