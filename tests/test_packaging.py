"""What is installed is what stands in the folders."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_what_the_folders_hold(tmp_path: Path) -> None:
    # A copy: setuptools keeps what it builds beside the sources, and packs what is left there of deleted modules.
    source = tmp_path / "source"
    for folder in ("graph", "nodes", "tools"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / file, source / file)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(tmp_path),
            str(source),
        ],
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name.removeprefix("nslora/") for name in wheel.namelist() if name.startswith("nslora/")}
    standing = {
        str(path.relative_to(ROOT)).removeprefix("graph/api/")  # the front door lies at the package's top
        for folder in ("graph", "nodes", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    assert packed == standing


def test_the_layers_import_downwards_only() -> None:
    """The short form of what `make lint` holds in full, for those who run tests alone."""
    forbidden = {"tools": ("nslora.graph", "nslora.nodes", "langgraph"), "nodes": ("nslora.graph",)}
    for folder, modules in forbidden.items():
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                words = line.split()
                if words[:1] in (["from"], ["import"]) and words[1].startswith(modules):
                    assert words[1] == "nslora.graph.state", f"{path}: {line.strip()}"
