"""Removes API keys from texts: those that a chat model or the environment holds, and whatever else looks like one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

SECRET_MARK = "[secret]"
SHORTEST_SECRET = 6  # characters; shorter values would be found in ordinary words

_SECRET = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|ghp|github_pat|AIza|AKIA)[-_]?[\w-]{12,}"
    r"|(?<=bearer )\S+|(?<=basic )\S{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?<=key=)[^\s&'\"]+|(?<=token=)[^\s&'\"]+"
    r"|(?<=[-_]key['\"]: ['\"])[^'\"]+|(?<=[-_]key: ['\"])[^'\"]+|(?<=[-_]token['\"]: ['\"])[^'\"]+",
    re.IGNORECASE,
)
# Field names of a chat model whose plain text is a key (api_key, auth_token; not max_tokens or tokenizer_name), and
# keys of a mapping. A mapping is often HTTP headers, where it is better to hide too much.
_SECRET_FIELD = re.compile(r"secret|password|authorization|credential|key$|(?:^|_)(?:auth|token)$", re.IGNORECASE)
_SECRET_ENTRY = re.compile(r"auth(?!or(?!i))|key|token|secret|password|credential", re.IGNORECASE)
# Names of environment variables: OPENAI_API_KEY, HF_TOKEN, PGPASSWORD, AWS_ACCESS_KEY_ID.
_SECRET_VARIABLE = re.compile(r"(?:key|token|secret|password|passwd|credentials?|auth)(?:_id)?$", re.IGNORECASE)
_URL_USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")


def secrets_of(chat: object) -> tuple[str, ...]:
    """List the keys in a chat model (also inside LangChain's wrappers): secret fields, and headers that hold one."""
    found = [secret for secret in _secrets_in(chat, named=False, seen=set()) if len(secret) >= SHORTEST_SECRET]
    as_json = [json.dumps(secret, ensure_ascii=False)[1:-1] for secret in found]  # as recorded fields would hold it
    return tuple(dict.fromkeys([*found, *as_json]))


def _secrets_in(value: object, *, named: bool, seen: set[int]) -> Iterator[str]:
    """Walk through a value and its parts. named: whether the name of this value says that it is a key."""
    # Of the type, since attributes of a configurable chat model are those of a model that it makes for the occasion.
    if callable(reveal := getattr(type(value), "get_secret_value", None)):
        yield str(reveal(value))
    elif isinstance(value, str):  # a number under such a name is a count, as of tokens
        yield from [value] if named else []
    elif isinstance(value, BaseModel | Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        parts: list[tuple[object, object]]
        if isinstance(value, BaseModel):
            parts = [(_SECRET_FIELD.search(name), getattr(value, name, None)) for name in type(value).model_fields]
        elif isinstance(value, Mapping):
            parts = [(_SECRET_ENTRY.search(str(name)), each) for name, each in value.items()]
        else:
            parts = [(named, each) for each in value]
        for secret, each in parts:
            yield from _secrets_in(each, named=bool(secret), seen=seen)


def without(text: str, secrets: Sequence[str]) -> str:
    """Replace these keys in a text by `[secret]`."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, SECRET_MARK)
    return text


def scrub(text: str, secrets: Sequence[str] = ()) -> str:
    """Replace these keys, and anything that looks like a key, by `[secret]`."""
    return _SECRET.sub(SECRET_MARK, without(text, secrets))


def environment_secrets(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Values of the environment variables whose names say that they hold a key."""
    named = (value for name, value in environment.items() if _SECRET_VARIABLE.search(name))
    return tuple(dict.fromkeys(value for value in named if len(value) >= SHORTEST_SECRET))


def publishable(text: str, secrets: Sequence[str] = ()) -> str:
    """A text as it may leave this machine: without keys, users of URLs, and the name of the home folder."""
    home = str(Path.home())
    kept = _URL_USER.sub(SECRET_MARK, scrub(text, secrets))
    return kept if len(home) < 2 else re.sub(rf"(?<![\w.]){re.escape(home)}(?![\w.-])", "~", kept)
