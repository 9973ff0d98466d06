"""The adapter that a run starts from: a PEFT folder of LoRA weights, which training continues."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nslora.tools.errors import ModelError
from nslora.tools.inference.weights import ModelSource, Notify
from nslora.tools.training.adapters import CONFIG, WEIGHTS
from nslora.tools.training.settings import LoraSettings

LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(?:\.weight)?")
BLOCK = re.compile(r"\.(\d+)\.")
# Settings that the adapter decides, by their names in PEFT's config.
DECIDED = {"rank": "r", "alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}
UNTRAINED = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")


def lora_settings_of(folder: Path, lora: LoraSettings, blocks: int) -> LoraSettings:
    """Return the LoRA settings of a run that continues an adapter: rank, alpha and place are the adapter's.

    Args:
        folder: The PEFT folder.
        lora: The settings of the run.
        blocks: Number of the model's decoder blocks.

    Raises:
        ModelError: If the folder holds no LoRA weights in safetensors, or the settings name another shape.
    """
    config, modules = _config_of(folder), modules_of(folder)
    lowest = min(int(found[1]) for name in modules if (found := BLOCK.search(name)))
    decided: dict[str, Any] = {name: config[key] for name, key in DECIDED.items() if config.get(key) is not None}
    decided["targets"] = tuple(sorted({name.rsplit(".", 1)[-1] for name in modules}))
    decided["top_blocks"] = blocks - lowest
    for name, value in decided.items():
        wanted = getattr(lora, name)
        if name in lora.model_fields_set and wanted is not None and wanted != value:
            raise ModelError(
                f"lora.{name} is {wanted}, but the adapter {folder} has {value}, which training cannot change: leave "
                f"lora.{name} out."
            )
    return LoraSettings(**{**lora.model_dump(), **decided})


def _config_of(folder: Path) -> Mapping[str, Any]:
    """Read the adapter's config, after a check that it is LoRA in safetensors. Raises ModelError."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no PEFT adapter ({CONFIG} is missing or damaged): name a folder that `save_pretrained` of a "
            "PeftModel wrote."
        ) from error
    if config.get("peft_type") != "LORA":
        raise ModelError(f"The adapter {folder} is {config.get('peft_type')}, but only LORA can be continued.")
    if held := [name for name in UNTRAINED if config.get(name)]:
        raise ModelError(
            f"The adapter {folder} has {', '.join(held)}, which is not trained here: merge it into its base."
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"The adapter {folder} has no {WEIGHTS}: save it again with safe_serialization=True; other files can run "
            "code, so they are not read."
        )
    return config  # type: ignore[no-any-return]


def modules_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the modules that an adapter changes, each with its (inputs, outputs).

    Raises:
        ModelError: If the file is damaged, or holds other tensors than those of LoRA in decoder blocks.
    """
    from safetensors import SafetensorError, safe_open

    sizes: dict[str, dict[str, int]] = {}
    try:
        with safe_open(folder / WEIGHTS, "numpy") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                found = LORA_TENSOR.fullmatch(key)
                if not found or not BLOCK.search(found["module"]):
                    raise ModelError(
                        f"The adapter {folder} holds {key}, but only LoRA of linear layers in decoder blocks can be "
                        "continued: merge the adapter into its base."
                    )
                if found["part"] in "AB":
                    shape = file.get_slice(key).get_shape()
                    sizes.setdefault(found["module"], {})[found["part"]] = shape[found["part"] == "A"]
    except SafetensorError as error:
        raise ModelError(f"The adapter {folder} is damaged ({error}): copy it again.") from error
    if not sizes:
        raise ModelError(f"The adapter {folder} holds no LoRA weights.")
    return {name: (size.get("A", 0), size.get("B", 0)) for name, size in sizes.items()}


def refuse_other_base(folder: Path, model: Any, source: ModelSource, notify: Notify = lambda _: None) -> None:
    """Check that an adapter fits a model's modules, and tell if its config names another base.

    Args:
        folder: The PEFT folder.
        model: The model, or its skeleton without weights.
        source: Its name.
        notify: Called with a remark if the adapter's config names another base.

    Raises:
        ModelError: If a module is missing or has another size.
    """
    base = _config_of(folder).get("base_model_name_or_path") or "an unnamed base"
    modules = dict(model.named_modules())
    for name, (inputs, outputs) in modules_of(folder).items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or sorted((inputs, outputs)) != sorted(weight.shape):
            has = "no such module" if weight is None else f"one of {' x '.join(map(str, weight.shape))}"
            raise ModelError(
                f"The adapter {folder} was trained on {base} and does not fit {source.name}: it changes {name} "
                f"({outputs} x {inputs}), and the model has {has}. Name its own base as the model."
            )
    if Path(base).name.lower() != Path(source.name).name.lower():
        notify(f"note     the adapter {folder} names the base {base}, the model is {source.name}; their shapes agree")
