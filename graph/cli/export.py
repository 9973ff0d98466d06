"""`nslora export`: the pair of a finished run in the formats in which models are deployed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nslora.graph.cli.common import out
from nslora.graph.cli.runs import Folder
from nslora.tools.errors import SettingsError

Base = Annotated[str | None, typer.Option(help="The base, if it lies elsewhere now: a folder, .gguf file or hub id.")]


def export(
    folder: Folder,
    merged: Annotated[
        Path | None, typer.Option(help="New folder: one model for transformers and vLLM, the prompt in its template.")
    ] = None,
    gguf: Annotated[Path | None, typer.Option(help="New file, for llama.cpp and LM Studio.")] = None,
    ollama: Annotated[Path | None, typer.Option(help="New folder with a GGUF file and a Modelfile.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Ask ten test questions of each export, as a client without the prompt.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="Repository on the Hugging Face Hub for --merged, with a model card.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everyone read a new repository.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, of --merged. Default: the run's.")
    ] = None,
    gguf_type: Annotated[str, typer.Option(help="f16 or q8_0, of --gguf and --ollama.")] = "f16",
    base: Base = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
) -> None:
    """Write the pair of adapter and prompt where models are deployed: any client gets the tuned behaviour."""
    from nslora.graph.runs.export import Targets, check_exports, pair_of, push_merged, refuse_no_check, write_exports
    from nslora.tools.export.gguf_file import gguf_type_named
    from nslora.tools.export.hub import refuse_name
    from nslora.tools.export.merged import dtype_named
    from nslora.tools.policies.environment import prepare_environment

    prepare_environment()
    targets = Targets(merged, gguf, ollama, dtype_named(dtype), gguf_type_named(gguf_type))
    if not any((merged, gguf, ollama)):
        raise SettingsError("Say what to write: --merged DIR, --gguf FILE or --ollama DIR.")
    if push is not None:
        refuse_name(push)
        if merged is None:
            raise SettingsError("--push uploads a merged folder: add --merged DIR.")
    pair = pair_of(folder, base=base)
    if check:
        refuse_no_check(folder, targets)
    for line in write_exports(pair, targets, overwrite=overwrite, notify=_say):
        _say(line)
    if check:
        _say("asking   test questions, as a client that knows nothing of the prompt")
        for line in check_exports(folder, targets):
            _say(line)
    if push is not None and merged is not None:
        _say(f"pushed   {push_merged(pair, merged, push, public=public)}")


def _say(line: Any) -> None:
    out.print(line, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(export)
