"""Keys out of texts: what a chat model holds, and whatever else looks like a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from langchain_core.language_models import BaseChatModel

SECRET_MARK = "[secret]"

_SECRET = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|ghp|github_pat|AIza|AKIA)[-_]?[\w-]{12,}"
    r"|(?<=bearer )\S+|(?<=basic )\S{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?<=key=)[^\s&'\"]+|(?<=token=)[^\s&'\"]+"
    r"|(?<=[-_]key['\"]: ['\"])[^'\"]+|(?<=[-_]key: ['\"])[^'\"]+|(?<=[-_]token['\"]: ['\"])[^'\"]+",
    re.IGNORECASE,
)
# Names of fields and headers whose text is a key, whatever its type: api_key, X-Api-Key, auth_token, client_secret.
_HOLDS_SECRET = re.compile(r"secret|password|authorization|(?:^|[^a-z])(?:auth|key|token)$|[a-z]Key$|apikey",
                           re.IGNORECASE)


def secrets_of(chat: BaseChatModel) -> tuple[str, ...]:
    """The keys that a chat model holds: its secret fields, and headers that carry one."""
    found = [secret for name in type(chat).model_fields for secret in _secrets_in(name, getattr(chat, name, None))]
    return tuple(dict.fromkeys(secret for secret in found if len(secret) >= 6))


def _secrets_in(name: str, value: object) -> list[str]:
    """The keys in a field, or in a mapping inside it."""
    if callable(reveal := getattr(value, "get_secret_value", None)):
        return [str(reveal())]
    if isinstance(value, Mapping):
        return [secret for key, each in value.items() for secret in _secrets_in(str(key), each)]
    return [value] if isinstance(value, str) and _HOLDS_SECRET.search(name) else []


def without(text: str, secrets: Sequence[str]) -> str:
    """The text without these keys."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, SECRET_MARK)
    return text


def scrub(text: str, secrets: Sequence[str] = ()) -> str:
    """The text without keys: those given, and whatever looks like one."""
    return _SECRET.sub(SECRET_MARK, without(text, secrets))
