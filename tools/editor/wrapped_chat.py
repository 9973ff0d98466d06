"""Chat models inside LangChain's wrappers: bind, with_config, with_fallbacks, with_retry, configurable ones.

A wrapper has no settings of its own, so an editor's name, temperature and longest reply are read from the models
inside. Arguments that were bound around a model take precedence over the model's own fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBinding, RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.runnables.retry import RunnableRetry
from pydantic import BaseModel

from nslora.tools.editor.redaction import scrub, secrets_of
from nslora.tools.errors import ModelError, first_line

Chat = BaseChatModel | Runnable[Any, Any]  # the second only if it wraps nothing but chat models
# The names under which integrations bound a reply: OpenAI (two), Anthropic; Google; Ollama.
REPLY_LENGTH_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
RETRIES_NAMES = ("max_retries",)
CONFIGURABLE = "_ConfigurableModel"  # of the langchain package, which may be absent, and has no public name for it
# Some providers accept temperatures up to 1, others up to 2; a model already above 1 belongs to the others.
WARMEST, WARMEST_ABOVE_1 = 1.0, 2.0


class Branch(NamedTuple):
    """One model that may answer (not necessarily a chat model), and the arguments bound to its calls."""

    model: Any
    bound: Mapping[str, Any]


def branches(chat: Any) -> Iterator[Branch]:
    """List the models that may answer, the first to be asked in front. chat: a result of `configured`."""
    if isinstance(chat, RunnableBindingBase):
        for model, bound in branches(chat.bound):
            yield Branch(model, {**bound, **chat.kwargs})
    elif isinstance(chat, RunnableWithFallbacks):
        for each in chat.runnables:
            yield from branches(each)
    else:
        yield Branch(chat, {})


def configured(chat: Any, config: RunnableConfig | None = None) -> Any:
    """Replace configurable fields and alternatives by the values that they were configured with."""
    if isinstance(chat, DynamicRunnable):
        inner, rest = chat.prepare(config)
        return configured(inner, rest)
    if type(chat).__name__ == CONFIGURABLE:
        return configured(_made(chat, config), config)
    if isinstance(chat, RunnableBindingBase):
        return chat.model_copy(update={"bound": configured(chat.bound, merge_configs(chat.config, config))})
    if isinstance(chat, RunnableWithFallbacks):
        return _with_models(chat, [configured(each, config) for each in chat.runnables])
    return chat


def _made(chat: Any, config: RunnableConfig | None) -> Any:
    """The model that `init_chat_model(..., configurable_fields=...)` stands for. Raises ModelError if it names none.

    Without a config of its own it would take the fields of the graph that it runs in, such as the thread's id.
    """
    try:
        return chat._model({"configurable": {}, **(config or {})})
    except Exception as error:
        said = scrub(first_line(error), secrets_of([*vars(chat).values()]))
        raise ModelError(
            f"The editor is a configurable chat model that makes no model ({type(error).__name__}: {said}): give it "
            "one, as in chat.with_config(configurable={'model': 'gpt-4o', 'model_provider': 'openai'})."
        ) from None  # the cause may hold a key


def retries_itself(chat: Any) -> bool:
    """Whether a call is made again without our doing: by LangChain's with_retry, or by a provider's client.

    Args:
        chat: A result of `configured`.
    """
    if isinstance(chat, RunnableRetry):
        return True
    if isinstance(chat, RunnableBindingBase):
        return retries_itself(chat.bound)
    if isinstance(chat, RunnableWithFallbacks):
        return any(map(retries_itself, chat.runnables))
    settings = _settings(chat)  # None is the client's own number
    return any(settings.get(name, 0) != 0 for name in RETRIES_NAMES)


def adjusted(chat: Any, *, warmer: float, reply_tokens: int | None, anyway: bool = False) -> Any:
    """Copy a chat model with a higher temperature and a bound on its replies, that counts its tokens in a stream too.

    Args:
        chat: A result of `configured`.
        warmer: Added to each temperature that is set.
        reply_tokens: The bound, for models that have none yet; None leaves replies as they are.
        anyway: Whether the bound takes the place of a model's own.
    """
    if isinstance(chat, RunnableBindingBase):
        names = [name for name in REPLY_LENGTH_NAMES if name in chat.kwargs]
        changes = _changes(chat.kwargs, warmer, reply_tokens, anyway)
        inner = adjusted(chat.bound, warmer=warmer, reply_tokens=None if names else reply_tokens, anyway=anyway)
        return chat.model_copy(update={"bound": inner, "kwargs": {**chat.kwargs, **changes}})
    if isinstance(chat, RunnableWithFallbacks):
        models = [adjusted(each, warmer=warmer, reply_tokens=reply_tokens, anyway=anyway) for each in chat.runnables]
        return _with_models(chat, models)
    changes = _changes(_settings(chat), warmer, reply_tokens, anyway)
    # LangGraph's stream_mode="messages" makes a model stream, and ChatOpenAI then counts no tokens of a local server.
    if getattr(chat, "stream_usage", False) is None:
        changes["stream_usage"] = True
    return chat.model_copy(update=changes) if changes else chat


def reply_tokens_of(chat: Any, unbound: int) -> int:
    """The most tokens that a call may bring back, over all branches, with all replies of a call (OpenAI's `n`).

    Args:
        chat: A result of `configured`.
        unbound: Tokens to assume for a model without a bound of its own.
    """

    def most(model: Any, bound: Mapping[str, Any]) -> int:
        count = bound.get("n", getattr(model, "n", None))
        bounds_replies = any(name in bound for name in REPLY_LENGTH_NAMES)
        longest = _length(bound if bounds_replies else _settings(model)) or unbound
        return longest * (count if isinstance(count, int) and count > 0 else 1)

    return max(most(*branch) for branch in branches(chat))


def to_fill_in(chat: Any, form: type[BaseModel]) -> Any | None:
    """Give a chat model this schema to fill in, as `with_structured_output(form, include_raw=True)` does.

    Args:
        chat: A result of `configured`.
        form: The schema.

    Returns:
        None if the model has no structured output, or if arguments were bound to it, which LangChain would drop.
    """
    if isinstance(chat, RunnableBindingBase):
        inner = None if chat.kwargs else to_fill_in(chat.bound, form)
        if inner is None:
            return None
        plain = isinstance(chat, RunnableBinding)
        return inner.with_config(chat.config) if plain else chat.model_copy(update={"bound": inner})
    if isinstance(chat, RunnableWithFallbacks):
        first, *others = (to_fill_in(each, form) for each in chat.runnables)
        if first is None or None in others:
            return None
        return first.with_fallbacks(others, exceptions_to_handle=chat.exceptions_to_handle)
    try:
        return chat.with_structured_output(form, include_raw=True)
    except NotImplementedError:
        return None
    except TypeError as error:  # a method without `include_raw`: without the raw message, the cost is unknown
        if "include_raw" not in str(error):
            raise
        return None


def _with_models(chat: Any, models: Sequence[Any]) -> Any:
    return chat.model_copy(update={"runnable": models[0], "fallbacks": models[1:]})


def _settings(chat: Any) -> dict[str, Any]:
    return {name: getattr(chat, name, None) for name in type(chat).model_fields}


def _changes(settings: Mapping[str, Any], warmer: float, reply_tokens: int | None, anyway: bool) -> dict[str, Any]:
    """The settings to change: a temperature that is set, and a bound on replies that is open, or any."""
    changes: dict[str, Any] = {}
    now = settings.get("temperature")
    if warmer and isinstance(now, int | float):
        changes["temperature"] = min(max(WARMEST if now <= WARMEST else WARMEST_ABOVE_1, now), now + warmer)
    name = next((name for name in REPLY_LENGTH_NAMES if name in settings), None)
    if reply_tokens is not None and name is not None and (anyway or not _length(settings)):
        changes[name] = reply_tokens
    return changes


def _length(settings: Mapping[str, Any]) -> int | None:
    """The bound on replies among these settings; Ollama's -1 means no bound."""
    found = [settings.get(name) for name in REPLY_LENGTH_NAMES]
    return next((value for value in found if isinstance(value, int) and value > 0), None)
