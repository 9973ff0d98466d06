"""What calls of a chat model took: tokens as the provider counted them, and their price; and the most they may take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from langchain_core.messages import AIMessage

from nslora.tools.editor.local_chat import TOKENS_ARE_EXACT
from nslora.tools.errors import SettingsError

# Rule of thumb for English under today's tokenizers; used only if the provider reports no usage, and then marked.
CHARACTERS_PER_TOKEN = 4
MOST_TOKENS = 1 << 40  # a larger count is no count of tokens, and checkpoints hold 64 bits


@dataclass(frozen=True)
class Usage:
    """What editor calls cost.

    Attributes:
        calls: Number of calls, failed ones included.
        input_tokens: Tokens of the requests.
        output_tokens: Tokens of the replies.
        cost: In the currency of the user's price table.
        estimated: Whether some token counts are estimates.
        seconds: Wall-clock time.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    estimated: bool = False
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "estimated"}
        return Usage(**sums, estimated=self.estimated or other.estimated)

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class Caps:
    """The most that an editor may cost in a run; None means no cap.

    A call is reserved before it is made, at one token per byte of its request plus `reply_tokens`, so a cap is never
    overshot. If the chat model has a setting for the reply's length, that is bound too (wrapped_chat.py).
    A call that failed is made again only if the caps hold both; it may have been paid for. Retries by the chat model
    itself, or by LangChain's with_retry and with_fallbacks around it, count as one call.

    Attributes:
        calls: Number of calls.
        tokens: Input and output tokens together.
        cost: In the currency of the price table.
        reply_tokens: Longest reply, in tokens, of a chat model that has no bound of its own.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    reply_tokens: int = 4096


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
