"""An adapter of a run's shape with random weights, to learn what a server does with one before anything is spent."""

from pathlib import Path
from typing import Any

from nslora.tools.policies.facts import ModelFacts
from nslora.tools.training.adapters import WEIGHTS, AdapterStore
from nslora.tools.training.lora_targets import peft_placement
from nslora.tools.training.settings import LoraSettings


def write_probe_adapter(facts: ModelFacts, lora: LoraSettings, store: AdapterStore, folder: Path) -> str:
    """Write an adapter that changes every loss, into a new folder and from there into the store; return its hash.

    Args:
        facts: Of the model, whose skeleton tells the shapes.
        lora: Rank, alpha and kind of the run's adapters.
        store: The adapter store.
        folder: Where to write it first, on the store's disk.
    """
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file

    model: Any = facts.skeleton()
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=facts.source.name,
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        **peft_placement(model, facts.targets),
    )
    shapes = get_peft_model_state_dict(get_peft_model(model, config), save_embedding_layers=False)
    drawn = torch.Generator().manual_seed(0)
    # As large as the modules' own outputs.
    weights = {
        name: torch.randn(value.shape, generator=drawn) / value.shape[-1] ** 0.5 for name, value in shapes.items()
    }
    folder.mkdir(parents=True)
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(weights, folder / WEIGHTS)
    return store.add(folder)
