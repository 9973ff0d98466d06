"""Keys out of texts: what a chat model holds, and whatever else looks like a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from langchain_core.language_models import BaseChatModel

SECRET_MARK = "[secret]"

_SECRET = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|ghp|AIza)[-_]?[\w-]{12,}"
    r"|(?<=bearer )\S+|(?<=basic )\S{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?<=key=)[^\s&'\"]+|(?<=token=)[^\s&'\"]+",
    re.IGNORECASE,
)


def secrets_of(chat: BaseChatModel) -> tuple[str, ...]:
    """The keys that a chat model holds: its secret fields, and headers that carry one."""
    found = []
    for name in type(chat).model_fields:
        value = getattr(chat, name, None)
        if callable(reveal := getattr(value, "get_secret_value", None)):
            found.append(str(reveal()))
        elif isinstance(value, Mapping):
            found += [str(v) for k, v in value.items() if re.search(r"auth|key|token|secret", str(k), re.IGNORECASE)]
    return tuple(secret for secret in found if len(secret) >= 6)


def without(text: str, secrets: Sequence[str]) -> str:
    """The text without these keys."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, SECRET_MARK)
    return text


def scrub(text: str, secrets: Sequence[str] = ()) -> str:
    """The text without keys: those given, and whatever looks like one."""
    return _SECRET.sub(SECRET_MARK, without(text, secrets))
