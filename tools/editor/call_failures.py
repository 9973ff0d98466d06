"""Tell a call that failed (key, quota, server, network) from a request or reply that cannot be used.

A call that failed says nothing about prompts: it is made again if the failure passes, else it stops the run. What a
server refuses because of the request's content (too long, filtered), or answers in a form that nobody can read, is a
failed edit.
"""

import re
from collections.abc import Iterator, Sequence

from nslora.tools.editor.redaction import scrub
from nslora.tools.errors import EditorError, NsloraError
from nslora.tools.http_status import http_status
from nslora.tools.rewards.calling import WAITS_S, asked_to_wait, is_passing

# HTTP statuses by which a server refuses the request's content: bad request, too large, unprocessable.
REFUSED_CONTENT = (400, 413, 422)
# Types of the openai and langchain-core packages for a reply that came but cannot be used; the packages may be absent.
UNUSABLE_REPLY = ("ContentFilterFinishReasonError", "LengthFinishReasonError", "OutputParserException")
# What some servers say under another status: Gemini answers 400 to a wrong key, Anthropic 400 to an empty account, and
# OpenAI 429 to a quota that is used up, which no waiting brings back.
OTHER_STATUS = {
    401: re.compile(r"api[ _-]?key[ _](?:not valid|invalid|expired)|invalid[ _](?:x-)?api[ _-]?key", re.IGNORECASE),
    402: re.compile(r"insufficient_quota|credit balance|billing_hard_limit|billing_not_active", re.IGNORECASE),
}
# A server that is not there. Of httpcore's errors on, the operating system's own is no longer among the causes.
NOBODY = re.compile(
    r"connection ?refused|connect call failed|gaierror|name or service not known|nodename nor servname",
    re.IGNORECASE,
)
LONGEST_WAIT_S = 120.0  # a server that asks for a longer wait stops the run
REMEDIES = {
    401: "Check its API key",
    402: "Its quota is used up: add credit, or choose another model",
    403: "Its API key does not allow this: check the key and the account",
    404: "Check the model's name and the base URL",
    408: "It did not answer in time: try again later, or raise the chat model's timeout",
    429: "Its rate limit or quota is used up: try again later",
}
SERVER_FAILED = "Its server failed: try again later, or choose another model"
UNREACHED = "No usable answer came: check the chat model, its base URL and the network"
GO_ON = "resume the run; no round was counted"
MESSAGE_CHARACTERS = 500  # of a provider's error message


def in_words(error: Exception, who: str, secrets: Sequence[str]) -> str:
    """One sentence: who failed, with which error, under which HTTP status, in whose words; without secrets."""
    if isinstance(error, EditorError):
        return str(error)
    try:
        text = scrub(str(error), secrets)[:MESSAGE_CHARACTERS].strip()
    except Exception:  # some providers' exceptions fail in __str__
        text = ""
    status = http_status(error)
    kind = type(error).__name__ + (f" (HTTP {status})" if status is not None else "")
    return f"{who} failed with {kind}: {text.rstrip('.') or '(no message)'}."


def is_call_failure(error: Exception) -> bool:
    """Whether the call itself failed, so that the run must stop."""
    if isinstance(error, NsloraError) or any(type(each).__name__ in UNUSABLE_REPLY for each in _chain(error)):
        return False
    return _meaning(error) not in REFUSED_CONTENT


def wait_before(error: Exception, tries: int) -> float | None:
    """Seconds to wait before a call is made again that failed `tries` times; None if that would not help.

    Failures that pass are rate limits, server errors, time-outs and lost connections. A server that nobody answers at
    is none. What the server asks for in `Retry-After` is waited for.
    """
    nobody = any(NOBODY.search(f"{type(each).__name__}: {_text(each)}") for each in _chain(error))
    if nobody or _meaning(error) in OTHER_STATUS or not is_passing(error):
        return None
    wait_s = max(WAITS_S[min(tries, len(WAITS_S)) - 1], asked_to_wait(error))
    return wait_s if wait_s <= LONGEST_WAIT_S else None


def remedy_for(error: Exception, then: str = GO_ON) -> str:
    """What to do about a call that failed, as the rest of a sentence. then: what comes after that."""
    status = _meaning(error)
    if status is None:
        return f"{UNREACHED}, then {then}."
    return f"{REMEDIES.get(status, SERVER_FAILED)}, then {then}."


def status_of(error: BaseException) -> int | None:
    """The first HTTP status of an error or of what caused it; None if there is none."""
    return next((status for each in _chain(error) if (status := http_status(each)) is not None), None)


def _meaning(error: BaseException) -> int | None:
    """The HTTP status, or the one that the server means (`OTHER_STATUS`)."""
    status = status_of(error)
    if status in (400, 429):
        said = f"{getattr(error, 'code', '')} {getattr(error, 'body', '')} {_text(error)}"
        return next((meant for meant, words in OTHER_STATUS.items() if words.search(said)), status)
    return status


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # some providers' exceptions fail in __str__
        return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, nearest first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__
