"""Answers to a file of questions, in lots that survive a kill."""

from collections.abc import Callable, Sequence
from pathlib import Path

from nslora.tools.errors import ExportError
from nslora.tools.files import append_jsonl, read_jsonl
from nslora.tools.policy import OnProgress, no_progress
from nslora.tools.schema import Dialogue

LOT = 64  # questions between two writes; a kill costs at most these


def answer_in_lots(
    ask: Callable[[Sequence[Dialogue]], Sequence[str]],
    dialogues: Sequence[Dialogue],
    kept: Path,
    *,
    lot: int = LOT,
    on_progress: OnProgress = no_progress,
) -> list[str]:
    """Answer every dialogue, from where an earlier process stopped.

    Args:
        ask: Answers a lot.
        dialogues: What is asked.
        kept: The replies so far, one lot a line; its name must tell these questions and this model from others.
        lot: Questions of a lot.
        on_progress: Called with (replies done, all) after each lot.

    Raises:
        ExportError: If the replies so far cannot be written.
    """
    replies: list[str] = [reply for done in read_jsonl(kept) for reply in done]
    while len(replies) < len(dialogues):
        new = list(ask(dialogues[len(replies) : len(replies) + lot]))
        try:
            append_jsonl(kept, new)
        except OSError as error:
            raise ExportError(
                f"{kept} cannot be written ({error.strerror}): free some disk space, then give the same command again; "
                f"{len(replies)} replies are kept."
            ) from error
        replies += new
        on_progress(len(replies), len(dialogues))
    return replies
