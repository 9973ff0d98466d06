"""`nslora serve`: the result of a run behind an OpenAI-compatible server."""

import signal
import time
from contextlib import suppress
from types import FrameType
from typing import Annotated

import typer

from nslora.graph.cli.common import out
from nslora.graph.cli.export import Base
from nslora.graph.cli.runs import Folder
from nslora.tools.errors import ExportError


def serve(
    folder: Folder,
    engine: Annotated[
        str | None, typer.Option(help="llamacpp, transformers or vllm. Default: the first that is installed.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where it listens. Whoever reaches it may ask it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    gguf_type: Annotated[str, typer.Option(help="f16 or q8_0, for llamacpp.")] = "f16",
    base: Base = None,
) -> None:
    """Serve adapter and prompt as one model, until Ctrl-C."""
    from nslora.graph.runs.export import pair_of
    from nslora.tools.export.gguf_file import gguf_type_named
    from nslora.tools.export.serving import engine_named, prepared, started
    from nslora.tools.inference.weights import resolve_model
    from nslora.tools.policies.environment import prepare_environment

    prepare_environment()
    kind, pair = gguf_type_named(gguf_type), pair_of(folder, base=base)
    with _stopped_by_sigterm(), suppress(KeyboardInterrupt):
        from transformers import AutoConfig

        chosen = engine_named(engine, AutoConfig.from_pretrained(resolve_model(pair.model, _say).location).model_type)
        server = started(chosen, prepared(pair, chosen, kind, _say), pair.name, host=host, port=port or None)
        try:
            _say(f"serving  {folder} at {server.base_url} ({chosen}); Ctrl-C ends")
            while server.running:
                time.sleep(0.2)
            raise ExportError(f"{chosen} ended by itself: see whether its memory sufficed, or choose another --engine.")
        finally:
            server.stop()
    _say("stopped")


class _stopped_by_sigterm:  # noqa: N801 (used as a function is)
    """SIGTERM ends the block as Ctrl-C does, so that the server is stopped."""

    def __enter__(self) -> None:
        def interrupt(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        self._before = signal.signal(signal.SIGTERM, interrupt)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _say(line: str) -> None:
    out.print(line, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(serve)
