"""The HTTP status behind an exception of openai, anthropic, httpx, requests, aiohttp or google."""

STATUS_NAMES = ("status_code", "status", "code")


def http_status(error: BaseException) -> int | None:
    """The status that an exception carries itself or in its response; None if there is none."""
    for holder in (error, getattr(error, "response", None)):
        for name in STATUS_NAMES:
            value = getattr(holder, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return int(value)
    return None
