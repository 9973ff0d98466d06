"""Rows that are too long for the model's context, found by their tokens before anything is spent on them.

A token takes a byte at least, so few dialogues are counted; half of the room is left for what the template adds.
"""

from collections.abc import Callable, Mapping, Sequence

from nslora.tools.errors import TooLongError
from nslora.tools.inference.flops import answered
from nslora.tools.policy import TrainingRow
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Dialogue, Example

ROWS_NAMED = 5  # in a message
Count = Callable[[Sequence[Dialogue]], list[int]]  # tokens of each dialogue


def refuse_long_questions(
    splits: Mapping[str, Sequence[Example]], prompt: Prompt, *, context_tokens: int, max_new_tokens: int, count: Count
) -> None:
    """Raise TooLongError, naming them, where questions outgrow the model's context under this prompt.

    Found at the end, one test question would cost the whole run.
    """
    every = [(f"{split} {row.id}", prompt.messages(row.question)) for split, rows in splits.items() for row in rows]
    long = [
        name
        for (name, _), beyond in zip(
            every, outgrown([dialogue for _, dialogue in every], context_tokens - max_new_tokens, count), strict=True
        )
        if beyond
    ]
    if long:
        raise TooLongError(
            f"Questions outgrow the model's context of {context_tokens} tokens with the prompt and the "
            f"reply ({named(long)}): shorten or remove them, or lower max_new_tokens."
        )


def within_context(rows: Sequence[TrainingRow], context_tokens: int, count: Count) -> tuple[list[TrainingRow], str]:
    """The rows that the model can be trained on, and a note on those that it cannot; empty where there are none."""
    beyond = outgrown([answered(row.dialogue, row.completion) for row in rows], context_tokens, count)
    fits = [row for row, long in zip(rows, beyond, strict=True) if not long]
    left_out = dict.fromkeys(row.source for row, long in zip(rows, beyond, strict=True) if long)
    if not left_out:
        return fits, ""
    return fits, (
        f"left out, since they take more than the {context_tokens} tokens of the model's context with prompt "
        f"and reply: {named(list(left_out))}; shorten or remove them"
    )


def outgrown(dialogues: Sequence[Dialogue], room_tokens: int, count: Count) -> list[bool]:
    """Whether each dialogue takes more than that."""
    sizes = [sum(len(turn["content"].encode("utf-8", "replace")) for turn in dialogue) for dialogue in dialogues]
    doubtful = [number for number, size in enumerate(sizes) if size > room_tokens // 2]
    counts = dict(zip(doubtful, count([dialogues[number] for number in doubtful]), strict=True))
    return [counts.get(number, 0) > room_tokens for number in range(len(dialogues))]


def named(rows: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return f"{', '.join(rows[:ROWS_NAMED])}{more}"
