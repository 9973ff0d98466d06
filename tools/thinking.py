"""Replies that begin with thinking: `<think> ... </think>`, then the answer.

A policy writes every family's markers as these two, so that records, checks and editors need to know no other. Checks,
classifier and editor see the answer; records keep the thinking beside it.
"""

OPENING, CLOSING = "<think>", "</think>"
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")  # of a message, by family


def split_thinking(reply: str) -> tuple[str, str]:
    """Split a reply into its thinking, with the markers, and the answer after it.

    The answer is what follows the last `</think>`. It is empty if the reply ends inside its thinking: a number that was
    only considered is no answer.

    Returns:
        Two texts that together are the reply. The first is empty if the reply has no thinking.
    """
    _, closed, after = reply.rpartition(CLOSING)
    answer = after.lstrip() if closed else reply
    if answer.lstrip().startswith(OPENING):
        answer = ""
    return (reply.removesuffix(answer) if closed or not answer else ""), answer


def thought_in(thinking: str) -> str:
    """Return the thinking without its markers."""
    return thinking.strip().removeprefix(OPENING).removesuffix(CLOSING).strip()
