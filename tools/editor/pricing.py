"""What a call of a chat model took: its tokens as the provider counted them, and their price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage

from nslora.tools.editor.local_chat import TOKENS_ARE_EXACT
from nslora.tools.errors import SettingsError

# Rule of thumb for English under today's tokenizers; used only if the provider reports no usage, and then marked.
CHARACTERS_PER_TOKEN = 4
MOST_TOKENS = 1 << 40  # a larger count is no count of tokens, and checkpoints hold 64 bits


def dearest(
    models: Sequence[str], prices: Mapping[str, Mapping[str, float]], *, needed: bool, settings: str = "editing"
) -> dict[str, float]:
    """The highest price among the models of which any may answer.

    Raises:
        SettingsError: A price is `needed` and missing, or lacks a part; `settings` is the group that holds the prices.
    """
    found = [_price(model, prices, needed=needed, settings=settings) for model in models]
    return {kind: max(price[kind] for price in found) for kind in ("input", "output")}


def _price(
    model: str, prices: Mapping[str, Mapping[str, float]], *, needed: bool, settings: str
) -> Mapping[str, float]:
    # Also found without the class or provider: a replay of a run without calls knows its editor only as `openai:...`.
    bare = model.partition(":")[2]
    known = {**{name.partition(":")[2]: price for name, price in prices.items()}, **prices}
    price = known.get(model) or (known.get(bare) if bare else None)
    if price is None and needed:
        setting = f"--set {settings}.prices.{bare or model}"
        raise SettingsError(
            f"A cap on cost needs a price for {model!r}, per million tokens: add "
            f"prices={{{model!r}: {{'input': ..., 'output': ...}}}} to {settings}, or in the shell {setting}.input=... "
            f"{setting}.output=...."
        )
    if price is not None and not {"input", "output"} <= set(price):
        raise SettingsError(f"The price of {model!r} needs both 'input' and 'output', per million tokens.")
    return price or {"input": 0.0, "output": 0.0}


def tokens_of(message: AIMessage) -> tuple[int, int] | None:
    """Read input and output tokens as the provider counted them.

    LangChain's UsageMetadataCallbackHandler does not replace this: it skips replies whose metadata name no model (local
    servers, fakes), sees no reply inside an error (`reply_in_error`), and accepts any number.

    Returns:
        None if there are no plausible counts. A count of 0 for a request is not believed, because it would lift the
        caps on tokens and cost, unless the chat model marks its counts as exact.
    """
    usage: Mapping[str, Any] = message.usage_metadata or {}
    sent, received = (usage.get(name) for name in ("input_tokens", "output_tokens"))
    if type(sent) is not int or type(received) is not int:
        return None
    fewest = 0 if message.response_metadata.get(TOKENS_ARE_EXACT) else 1
    return (sent, received) if fewest <= sent < MOST_TOKENS and 0 <= received < MOST_TOKENS else None


def estimate(text: str) -> int:
    """Guess the tokens of a text."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
