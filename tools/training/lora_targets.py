"""Which modules of a model get LoRA."""

from typing import Any

from nslora.tools.errors import ModelError
from nslora.tools.inference.decoder import blocks_of
from nslora.tools.training.settings import LoraSettings

TOP_SHARE = 1 / 3  # of the blocks, on a CPU: learns as well as all of them at half the cost (SmolLM2-135M)
# PEFT 0.21 refuses these modules, because kernels of these models read their weights directly.
READ_BY_KERNELS = {"out_proj", "conv1d"}
MODELS_WITH_SUCH_KERNELS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
# If a block's experts are one tensor, PEFT 0.21 applies these names to the experts, in every block.
EXPERTS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}


def lora_targets(model: Any, settings: LoraSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Return the keyword arguments of PEFT's LoraConfig that place the adapter, as reports and job hashes record them.

    PEFT does not combine `layers_to_transform` with "all-linear", so the linear modules of a block are listed by name.

    Args:
        model: The base, without LoRA.
        settings: `targets` and `top_blocks` choose modules and blocks.
        on_cpu: Whether the default is the top third of the blocks instead of all.

    Raises:
        ModelError: If LoRA cannot go on a named module, or the model has fewer blocks than asked for.
    """
    from transformers.pytorch_utils import Conv1D

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    top = settings.top_blocks or (max(1, round(len(blocks) * TOP_SHARE)) if on_cpu else len(blocks))
    if top > len(blocks):
        raise ModelError(f"lora.top_blocks is {top}, the model has {len(blocks)} blocks: lower it.")
    # Blocks may differ: some architectures alternate attention with convolutions.
    modules = [named for block in list(blocks)[-top:] for named in block.named_modules()]
    linear = sorted({path.rsplit(".", 1)[-1] for path, child in modules if _is_linear(child)} - _refused(model, blocks))
    targets = list(settings.targets or linear)
    if unknown := sorted(set(targets) - set(linear)):
        raise ModelError(
            f"lora.targets names {', '.join(unknown)}, on which LoRA cannot go in this model's blocks: choose from "
            f"{', '.join(linear)}."
        )
    return {
        "target_modules": targets,
        "layers_to_transform": list(range(len(blocks) - top, len(blocks))),
        "layers_pattern": name,
        "fan_in_fan_out": any(isinstance(child, Conv1D) for child in blocks[-1].modules()),
    }


def peft_placement(model: Any, targets: dict[str, Any]) -> dict[str, Any]:
    """Return `lora_targets` as PEFT needs them: by whole paths if other blocks have modules of the same names.

    A vision tower has such blocks.
    """
    decoder, name = blocks_of(model)
    blocks, names = getattr(decoder, name), set(targets["target_modules"])
    own = {id(child) for child in blocks.modules()}
    named = [(path, id(child)) for path, child in model.named_modules() if path.rsplit(".", 1)[-1] in names]
    if not any(f".{name}." in path and child not in own for path, child in named):
        return targets
    wanted = {id(child) for i in targets["layers_to_transform"] for child in blocks[i].modules() if _is_linear(child)}
    return {
        "target_modules": [path for path, child in named if child in wanted],
        "fan_in_fan_out": targets["fan_in_fan_out"],
    }


def _is_linear(module: Any) -> bool:
    """Return whether the module only multiplies by its weight: a router of experts may be a Linear that does more."""
    import torch
    from transformers.pytorch_utils import Conv1D

    own = type(module).__module__.startswith("transformers.models.") and "forward" in vars(type(module))
    packed = hasattr(module, "qweight")  # GPTQ and AWQ layers, as their packages name the weight
    return (isinstance(module, torch.nn.Linear | Conv1D) or packed) and not own


def _refused(model: Any, blocks: Any) -> set[str]:
    """Name the linear modules that PEFT does not accept in this model."""
    names = READ_BY_KERNELS if model.config.model_type in MODELS_WITH_SUCH_KERNELS else set()
    as_one = any(parameter.dim() == 3 and "experts" in path for path, parameter in blocks.named_parameters())
    return names | (EXPERTS if as_one else set())
