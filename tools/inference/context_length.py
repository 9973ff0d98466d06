"""Rows that do not fit the model's context, found before any work is spent on them.

A token takes at least one byte. So only rows with more bytes than half of the room are tokenized; the other half is
left for the tokens that the chat template adds.
"""

from collections.abc import Callable, Mapping, Sequence

from nslora.tools.errors import TooLongError
from nslora.tools.policy import TrainingRow
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Dialogue, Example, answered

ROWS_NAMED = 5  # in a message
Count = Callable[[Sequence[Dialogue]], list[int]]  # tokens of each dialogue


def refuse_long_questions(
    splits: Mapping[str, Sequence[Example]], prompt: Prompt, *, context_tokens: int, max_new_tokens: int, count: Count
) -> None:
    """Check at the start that all questions fit the context, so that no test question ends the run at its end.

    Args:
        splits: Rows by the name of their split.
        prompt: The prompt that is sent with each question.
        context_tokens: Length of the model's context.
        max_new_tokens: Room for the reply.
        count: Counts the tokens of dialogues.

    Raises:
        TooLongError: If some questions do not fit; the message names them.
    """
    every = {f"{split} {row.id}": prompt.dialogue(row) for split, rows in splits.items() for row in rows}
    beyond = _outgrown(list(every.values()), context_tokens - max_new_tokens, count)
    if long := [name for name, too_long in zip(every, beyond, strict=True) if too_long]:
        raise TooLongError(
            f"Questions outgrow the model's context of {context_tokens} tokens with the prompt and the reply "
            f"({_named(long)}): shorten or remove them, or lower max_new_tokens."
        )


def within_context(rows: Sequence[TrainingRow], context_tokens: int, count: Count) -> tuple[list[TrainingRow], str]:
    """Select the rows that fit the context.

    Returns:
        The rows, and a note that names the sources of the others; the note is empty if all rows fit.
    """
    beyond = _outgrown([answered(row.dialogue, row.completion) for row in rows], context_tokens, count)
    fits = [row for row, too_long in zip(rows, beyond, strict=True) if not too_long]
    left_out = dict.fromkeys(row.source for row, too_long in zip(rows, beyond, strict=True) if too_long)
    if not left_out:
        return fits, ""
    return fits, (
        f"left out, since they take more than the {context_tokens} tokens of the model's context with prompt and "
        f"reply: {_named(list(left_out))}; shorten or remove them"
    )


def _outgrown(dialogues: Sequence[Dialogue], room_tokens: int, count: Count) -> list[bool]:
    """Return for each dialogue whether it takes more than `room_tokens`."""
    sizes = [sum(len(turn["content"].encode("utf-8", "replace")) for turn in dialogue) for dialogue in dialogues]
    doubtful = [number for number, size in enumerate(sizes) if size > room_tokens // 2]
    counts = dict(zip(doubtful, count([dialogues[number] for number in doubtful]), strict=True))
    return [counts.get(number, 0) > room_tokens for number in range(len(dialogues))]


def _named(rows: Sequence[str]) -> str:
    """List the first few, and count the rest."""
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return f"{', '.join(rows[:ROWS_NAMED])}{more}"
