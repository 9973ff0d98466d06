"""Keys out of texts: what a chat model holds, and whatever else looks like a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

SECRET_MARK = "[secret]"

_SECRET = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|ghp|github_pat|AIza|AKIA)[-_]?[\w-]{12,}"
    r"|(?<=bearer )\S+|(?<=basic )\S{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?<=key=)[^\s&'\"]+|(?<=token=)[^\s&'\"]+"
    r"|(?<=[-_]key['\"]: ['\"])[^'\"]+|(?<=[-_]key: ['\"])[^'\"]+|(?<=[-_]token['\"]: ['\"])[^'\"]+",
    re.IGNORECASE,
)
# Names of what holds a key: of a plain field (api_key, auth_token; not max_tokens or tokenizer_name), and of an entry
# in a mapping, a header above all, where it is better to hide too much.
_SECRET_FIELD = re.compile(r"secret|password|authorization|credential|key$|(?:^|_)(?:auth|token)$", re.IGNORECASE)
_SECRET_ENTRY = re.compile(r"auth(?!or(?!i))|key|token|secret|password|credential", re.IGNORECASE)


def secrets_of(chat: object) -> tuple[str, ...]:
    """The keys that a chat model holds, or one inside a wrapper: secret fields, and headers that carry one."""
    found = _secrets_in(chat, named=False, seen=set())
    return tuple(dict.fromkeys(secret for secret in found if len(secret) >= 6))


def _secrets_in(value: object, *, named: bool, seen: set[int]) -> list[str]:
    """The keys in a value, or in what it is made of. named: whether its own name says that it is one."""
    if callable(reveal := getattr(value, "get_secret_value", None)):
        return [str(reveal())]
    if isinstance(value, BaseModel | Mapping | list | tuple):
        if id(value) in seen:
            return []
        seen.add(id(value))
    if isinstance(value, BaseModel):
        fields = [(name, getattr(value, name, None)) for name in type(value).model_fields]
        return [
            secret
            for name, each in fields
            for secret in _secrets_in(each, named=bool(_SECRET_FIELD.search(name)), seen=seen)
        ]
    if isinstance(value, Mapping):
        return [
            secret
            for key, each in value.items()
            for secret in _secrets_in(each, named=bool(_SECRET_ENTRY.search(str(key))), seen=seen)
        ]
    if isinstance(value, list | tuple):
        return [secret for each in value for secret in _secrets_in(each, named=named, seen=seen)]
    return [value] if named and isinstance(value, str) else []  # a number is a count, as of tokens


def without(text: str, secrets: Sequence[str]) -> str:
    """The text without these keys."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, SECRET_MARK)
    return text


def scrub(text: str, secrets: Sequence[str] = ()) -> str:
    """The text without keys: those given, and whatever looks like one."""
    return _SECRET.sub(SECRET_MARK, without(text, secrets))
