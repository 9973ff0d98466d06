"""Which modules of a model LoRA goes on."""

from typing import Any

from nslora.tools.errors import ModelError
from nslora.tools.inference.decoder import blocks_of
from nslora.tools.training.settings import LoraSettings

TOP_SHARE = 1 / 3  # of the blocks, on a CPU: learns as well as all of them at half the cost (SmolLM2-135M)
# PEFT 0.21 refuses these, since kernels of such models read the weights past the module.
PAST_THE_MODULE = {"out_proj", "conv1d"}
MODELS_WITH_SUCH_KERNELS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
# Where a block's experts are one tensor, PEFT 0.21 takes these names for the experts', in every block.
EXPERTS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}


def lora_targets(model: Any, settings: LoraSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of PEFT's LoraConfig that say where the adapter sits.

    `layers_to_transform` cannot go with "all-linear", so the linear modules of a block are listed by name.
    Raises ModelError where LoRA cannot go on a named module or there are fewer blocks than asked for.
    """
    from transformers.pytorch_utils import Conv1D

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    top = settings.top_blocks or (max(1, round(len(blocks) * TOP_SHARE)) if on_cpu else len(blocks))
    if top > len(blocks):
        raise ModelError(f"lora.top_blocks is {top}, the model has {len(blocks)} blocks: lower it.")
    # Blocks may differ: some architectures alternate attention with convolutions.
    linear = sorted(
        {
            module.rsplit(".", 1)[-1]
            for block in list(blocks)[-top:]
            for module, child in block.named_modules()
            if is_linear(child)
        }
        - refused(model, blocks)
    )
    targets = list(settings.targets or linear)
    if unknown := sorted(set(targets) - set(linear)):
        raise ModelError(
            f"lora.targets names {', '.join(unknown)}, on which LoRA cannot go in this model's blocks; it "
            f"can go on {', '.join(linear)}."
        )
    fan_in_fan_out = any(isinstance(child, Conv1D) for child in blocks[-1].modules())
    return {
        "target_modules": targets,
        "layers_to_transform": list(range(len(blocks) - top, len(blocks))),
        "layers_pattern": name,
        "fan_in_fan_out": fan_in_fan_out,
    }


def is_linear(module: Any) -> bool:
    """Whether the module multiplies by its weight and does no more: a router of experts may be a Linear that does."""
    import torch
    from transformers.pytorch_utils import Conv1D

    own = type(module).__module__.startswith("transformers.models.") and "forward" in vars(type(module))
    return isinstance(module, torch.nn.Linear | Conv1D) and not own


def refused(model: Any, blocks: Any) -> set[str]:
    """Names of linear modules that PEFT does not take as such in this model."""
    names = PAST_THE_MODULE if model.config.model_type in MODELS_WITH_SUCH_KERNELS else set()
    as_one = any(parameter.dim() == 3 and "experts" in path for path, parameter in blocks.named_parameters())
    return names | (EXPERTS if as_one else set())


def peft_placement(model: Any, targets: dict[str, Any]) -> dict[str, Any]:
    """`lora_targets` as PEFT has to be told: by whole paths where blocks of another kind, those of a model that sees,
    have modules of the same names.
    """
    decoder, name = blocks_of(model)
    blocks, names = getattr(decoder, name), set(targets["target_modules"])
    own = {id(child) for child in blocks.modules()}
    elsewhere = any(
        f".{name}." in path and path.rsplit(".", 1)[-1] in names and id(child) not in own
        for path, child in model.named_modules()
    )
    if not elsewhere:
        return targets
    wanted = {id(child) for i in targets["layers_to_transform"] for child in blocks[i].modules() if is_linear(child)}
    paths = [path for path, child in model.named_modules() if id(child) in wanted and path.rsplit(".", 1)[-1] in names]
    return {"target_modules": paths, "fan_in_fan_out": targets["fan_in_fan_out"]}
