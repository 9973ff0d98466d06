"""Tell a call that failed (key, quota, server, network) from a request or reply that cannot be used.

A call that failed says nothing about prompts: it stops the run. What a server refuses because of the request's content
(too long, filtered), or answers in a form that nobody can read, is a failed edit.
"""

from collections.abc import Iterator

from nslora.tools.errors import NsloraError
from nslora.tools.http_status import http_status

# HTTP statuses by which a server refuses the request's content: bad request, too large, unprocessable.
REFUSED_CONTENT = (400, 413, 422)
# Types of the openai and langchain-core packages for a reply that came but cannot be used; the packages may be absent.
UNUSABLE_REPLY = ("ContentFilterFinishReasonError", "LengthFinishReasonError", "OutputParserException")
REMEDIES = {
    401: "Check its API key",
    402: "Its quota is used up: add credit, or choose another editor",
    403: "Its API key does not allow this: check the key and the account",
    404: "Check the model's name and the base URL",
    408: "It did not answer in time: try again later, or raise the chat model's timeout",
    429: "Its rate limit or quota is used up, and the chat model's retries are over: try again later",
}
SERVER_FAILED = "Its server failed, and the chat model's retries are over: try again later, or choose another editor"
UNREACHED = "No usable answer came: check the chat model, its base URL and the network"
GO_ON = "resume the run; no round was counted"


def is_call_failure(error: Exception) -> bool:
    """Whether the call itself failed, so that the run must stop."""
    if isinstance(error, NsloraError) or any(type(each).__name__ in UNUSABLE_REPLY for each in _chain(error)):
        return False
    return status_of(error) not in REFUSED_CONTENT


def remedy_for(error: Exception) -> str:
    """What to do about a call that failed, as the rest of a sentence."""
    status = status_of(error)
    if "insufficient_quota" in str(getattr(error, "code", "")):
        status = 402
    if status is None:
        return f"{UNREACHED}, then {GO_ON}."
    return f"{REMEDIES.get(status, SERVER_FAILED)}, then {GO_ON}."


def status_of(error: BaseException) -> int | None:
    """The first HTTP status of an error or of what caused it; None if there is none."""
    return next((status for each in _chain(error) if (status := http_status(each)) is not None), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, nearest first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__
