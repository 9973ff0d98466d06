"""Which modules of a model LoRA goes on."""

from typing import Any

from nslora.tools.errors import ModelError
from nslora.tools.frozen_trunk import blocks_of
from nslora.tools.settings import LoraSettings

TOP_SHARE = 1 / 3       # of the blocks, on a CPU: learns as well as all of them at half the cost (SmolLM2-135M)


def lora_targets(model: Any, settings: LoraSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of PEFT's LoraConfig that say where the adapter sits.

    `layers_to_transform` cannot go with "all-linear", so the linear modules of a block are listed by name.
    Raises ModelError where a named module does not exist or there are fewer blocks than asked for.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    top = settings.top_blocks or (max(1, round(len(blocks) * TOP_SHARE)) if on_cpu else len(blocks))
    if top > len(blocks):
        raise ModelError(f"lora.top_blocks is {top}, the model has {len(blocks)} blocks: lower it.")
    # Blocks may differ: some architectures alternate attention with convolutions.
    linear = sorted({module.rsplit(".", 1)[-1] for block in list(blocks)[-top:]
                     for module, child in block.named_modules() if isinstance(child, torch.nn.Linear | Conv1D)})
    targets = list(settings.targets or linear)
    if unknown := sorted(set(targets) - set(linear)):
        raise ModelError(f"lora.targets names {', '.join(unknown)}, which no block of this model has; it has "
                         f"{', '.join(linear)}.")
    fan_in_fan_out = any(isinstance(child, Conv1D) for child in blocks[-1].modules())
    return {"target_modules": targets, "layers_to_transform": list(range(len(blocks) - top, len(blocks))),
            "layers_pattern": name, "fan_in_fan_out": fan_in_fan_out}
