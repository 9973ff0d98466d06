"""`nslora export`: the pair of a finished run in the formats in which models are deployed."""

from pathlib import Path
from typing import Annotated

import typer

from nslora.graph.cli.common import out
from nslora.graph.cli.runs import Folder
from nslora.tools.errors import SettingsError

Base = Annotated[str | None, typer.Option(help="The base, if it lies elsewhere now: a folder, .gguf file or hub id.")]


def export(
    folder: Folder,
    merged: Annotated[
        Path | None,
        typer.Option(help="New folder: one model for transformers and vLLM, with the prompt in its template."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, of --merged. Default: the run's.")
    ] = None,
    base: Base = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
) -> None:
    """Write the pair of adapter and prompt where models are deployed: any client gets the tuned behaviour."""
    from nslora.graph.runs.export import pair_of
    from nslora.tools.export.merged import Merged, dtype_named
    from nslora.tools.export.pair import refuse_existing, written_whole
    from nslora.tools.files import quoted

    if merged is None:
        raise SettingsError("Say what to write: --merged DIR.")
    wanted = dtype_named(dtype)
    pair = pair_of(folder, base=base)
    refuse_existing(merged, overwrite=overwrite)  # before the model is loaded
    whole = Merged.of(pair, out.print)
    with written_whole(merged, overwrite=overwrite) as partial:
        whole.save(partial, wanted)
    out.print(f"wrote    {quoted(merged)}: loads with transformers, vLLM, TRL", highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(export)
