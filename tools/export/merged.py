"""The merged model: a folder that transformers and vLLM load, with the prompt in its template."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nslora.tools.errors import ExportError, SettingsError, first_line
from nslora.tools.export.pair import Pair, refuse_full_disk
from nslora.tools.export.template import exported_template
from nslora.tools.files import write_json
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.generation import GREEDY
from nslora.tools.inference.weights import Notify

Dtype = Literal["float32", "bfloat16", "float16"]
NAMING_FILE = "nslora.json"  # what an export is of


def dtype_named(name: str | None) -> Dtype | None:
    """A dtype by its name. Raises SettingsError if weights cannot have it."""
    if name is None or name in get_args(Dtype):
        return name  # type: ignore[return-value]
    raise SettingsError(f"--dtype {name}: wanted {', '.join(get_args(Dtype))}.")


@dataclass(frozen=True)
class Merged:
    """A base with an adapter in its weights.

    Attributes:
        pair: What was merged.
        base: The base's name: the hub id, else the folder's name.
        model: The model in float32. Its generation config is greedy and knows every token that ends a reply in a run.
        chat: The base's own chat format.
        tokenizer: The base's, with the exported template.
    """

    pair: Pair
    base: str
    model: Any
    chat: ChatFormat
    tokenizer: Any

    @classmethod
    def of(cls, pair: Pair, notify: Notify = lambda _: None) -> "Merged":
        """Load the base and add the adapter to its weights, in float32.

        Raises:
            ModelError, RunError: If the base cannot be loaded, or is another one than the run's.
            ExportError: If the base is quantised, or PEFT cannot merge the adapter.
        """
        notify(f"loading  {pair.model}")
        policy = pair.load_to_merge()
        model = _with_adapter(policy.base, pair.adapter)
        model.generation_config = _greedy(model.generation_config, policy.format)
        tokenizer = copy.deepcopy(policy.format.tokenizer)
        tokenizer.chat_template = exported_template(policy.format, pair.prompt)
        return cls(pair, policy.name, model, policy.format, tokenizer)

    def facts(self, dtype: str) -> dict[str, Any]:
        """What `nslora.json` says: base, dtype of the weights, and the pair's own facts."""
        return {"base": self.base, "dtype": dtype, **self.pair.facts}

    def save(self, folder: Path, dtype: Dtype | None = None) -> None:
        """Save the model, its tokenizer and `nslora.json`.

        Args:
            folder: An empty folder.
            dtype: Of the weights, rounded once from float32. None: that of the run.

        Raises:
            ExportError: If the disk has no room.
        """
        import torch

        wanted = dtype or self.pair.dtype
        as_torch = getattr(torch, wanted)
        refuse_full_disk(folder, self.model.num_parameters() * as_torch.itemsize, "The merged model")
        # A copy of a model that computes in float32 goes on to be exported to GGUF.
        model = self.model if wanted == "float32" else copy.deepcopy(self.model).to(as_torch)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / NAMING_FILE, self.facts(wanted))


def _with_adapter(base: Any, adapter: Path | None) -> Any:
    """Add an adapter's weights to the base's, in place. Raises ExportError if PEFT cannot."""
    if adapter is None:
        return base
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ExportError(
            f"The adapter {adapter} cannot be merged into its base ({first_line(error)}): serve base and adapter as "
            "they are."
        ) from error


def _greedy(own: Any, chat: ChatFormat) -> Any:
    """The base's generation config as a run uses it: greedy, and with every token that ends a reply."""
    config = copy.deepcopy(own)
    for name in ("do_sample", "temperature", "top_p", "top_k", "cache_implementation", "stop_strings"):
        setattr(config, name, GREEDY[name])
    config.eos_token_id, config.pad_token_id = list(chat.stop_ids), chat.pad_id
    return config
