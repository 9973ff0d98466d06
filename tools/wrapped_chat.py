"""Chat models inside LangChain's wrappers: bind, with_config, with_fallbacks, with_retry, configurable ones.

A wrapper has no settings of its own, so whatever is asked of an editor (its name, its temperature, how long a reply may
be) is asked of the models inside, and what was bound around them counts more than what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBinding, RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable
from pydantic import BaseModel

# Under which of these names an integration bounds a reply: OpenAI (two of them) and Anthropic, Google, Ollama.
REPLY_LENGTH_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
MODEL_NAMES = ("model_name", "model", "model_id")
WARMEST, WARMEST_ABOVE_1 = 1.0, 2.0     # some providers end at 1; one that takes more ends at 2


def models_in(chat: Any) -> list[Any]:
    """The models that may answer, the first to be asked in front; `chat` itself where it is no wrapper."""
    return [model for inner in _inside(chat) for model in models_in(inner)] or [chat]


def bound_to(chat: Any) -> dict[str, Any]:
    """The arguments that go with every call of the first model, the outermost wrapper's above all."""
    inner = _inside(chat)
    own = chat.kwargs if isinstance(chat, RunnableBindingBase) else {}
    return {**(bound_to(inner[0]) if inner else {}), **own}


def _inside(chat: Any) -> list[Any]:
    if isinstance(chat, RunnableBindingBase):
        return [chat.bound]
    if isinstance(chat, RunnableWithFallbacks):
        return [chat.runnable, *chat.fallbacks]
    if isinstance(chat, DynamicRunnable):
        others = getattr(chat, "alternatives", {})
        return [chat.default, *(other for other in others.values() if isinstance(other, BaseModel))]
    return []


def adjusted(chat: Any, *, warmer: float, reply_tokens: int | None) -> Any:
    """A copy whose models are warmer, where a temperature is set, and bound their replies, where they do not yet.

    reply_tokens: the bound; None leaves replies as they are.
    """
    if isinstance(chat, RunnableBindingBase):
        changes = _warmed(chat.kwargs, warmer)
        bound = None if _length(chat.kwargs) else reply_tokens
        return chat.model_copy(update={"bound": adjusted(chat.bound, warmer=warmer, reply_tokens=bound),
                                       "kwargs": {**chat.kwargs, **changes}})
    if isinstance(chat, RunnableWithFallbacks):
        first, *others = (adjusted(each, warmer=warmer, reply_tokens=reply_tokens) for each in _inside(chat))
        return chat.model_copy(update={"runnable": first, "fallbacks": others})
    if isinstance(chat, DynamicRunnable):
        return chat.model_copy(update={"default": adjusted(chat.default, warmer=warmer, reply_tokens=reply_tokens)})
    own = _settings(chat)
    changes = _warmed(own, warmer)
    name = next((name for name in REPLY_LENGTH_NAMES if name in own), None)
    if reply_tokens is not None and name is not None and not _length(own):
        changes[name] = reply_tokens
    return chat.model_copy(update=changes) if changes else chat


def reply_length(chat: Any) -> int | None:
    """The longest reply that the models bound themselves to, in tokens; None where one of them does not."""
    if isinstance(chat, RunnableBindingBase):
        return _length(chat.kwargs) or reply_length(chat.bound)
    if inner := _inside(chat):
        found = [reply_length(each) for each in inner]
        return None if None in found else max(length for length in found if length is not None)
    return _length(_settings(chat))


def replies_per_call(chat: Any) -> int:
    """How many replies a call asks for, and pays (OpenAI's `n`)."""
    counts = [bound_to(chat).get("n"), *(getattr(model, "n", None) for model in models_in(chat))]
    return max([count for count in counts if isinstance(count, int)], default=1) or 1


def to_fill_in(chat: Any, form: type[BaseModel]) -> Any | None:
    """The chat model with this form to fill in, as `with_structured_output`; None where it cannot have one.

    None too where arguments were bound: LangChain would leave them out.
    """
    if isinstance(chat, RunnableBinding):
        inner = None if chat.kwargs else to_fill_in(chat.bound, form)
        return None if inner is None else inner.with_config(chat.config)
    if isinstance(chat, RunnableWithFallbacks):
        first, *others = (to_fill_in(each, form) for each in _inside(chat))
        if first is None or None in others:
            return None
        return first.with_fallbacks(others, exceptions_to_handle=chat.exceptions_to_handle)
    if not isinstance(chat, BaseChatModel):
        return None
    try:
        return chat.with_structured_output(form, include_raw=True)
    except NotImplementedError:
        return None


def _settings(chat: Any) -> dict[str, Any]:
    return {name: getattr(chat, name, None) for name in type(chat).model_fields}


def _warmed(settings: Mapping[str, Any], warmer: float) -> dict[str, Any]:
    now = settings.get("temperature")
    if not warmer or not isinstance(now, int | float):
        return {}
    return {"temperature": min(max(WARMEST if now <= WARMEST else WARMEST_ABOVE_1, now), now + warmer)}


def _length(settings: Mapping[str, Any]) -> int | None:
    """The bound among these settings; -1 is Ollama's "none"."""
    found = [settings.get(name) for name in REPLY_LENGTH_NAMES]
    return next((value for value in found if isinstance(value, int) and value > 0), None)
