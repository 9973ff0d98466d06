"""Chat models inside LangChain's wrappers: bind, with_config, with_fallbacks, with_retry, configurable ones.

A wrapper has no settings of its own, so whatever is asked of an editor (its name, its temperature, how long a reply may
be) is asked of the models inside, and what was bound around them counts more than what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig, RunnableSerializable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBinding, RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable
from pydantic import BaseModel

Chat = BaseChatModel | RunnableSerializable[Any, Any]  # the second only where chat models are all that is inside
# Under which of these names an integration bounds a reply: OpenAI (two of them) and Anthropic, Google, Ollama.
REPLY_LENGTH_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
WARMEST, WARMEST_ABOVE_1 = 1.0, 2.0  # some providers end at 1; one that takes more ends at 2


class Branch(NamedTuple):
    """A model that may answer, and the arguments that go with each of its calls; it may be no chat model at all."""

    model: Any
    bound: Mapping[str, Any]

    def setting(self, name: str) -> Any:
        return self.bound[name] if name in self.bound else getattr(self.model, name, None)

    @property
    def reply_length(self) -> int | None:
        """The longest reply that it is bound to, in tokens."""
        if any(name in self.bound for name in REPLY_LENGTH_NAMES):
            return _length(self.bound)
        return _length(_settings(self.model))


def branches(chat: Any) -> Iterator[Branch]:
    """The models that may answer, the first to be asked in front. chat: settled."""
    if isinstance(chat, RunnableBindingBase):
        for model, bound in branches(chat.bound):
            yield Branch(model, {**bound, **chat.kwargs})
    elif isinstance(chat, RunnableWithFallbacks):
        for each in chat.runnables:
            yield from branches(each)
    else:
        yield Branch(chat, {})


def configured(chat: Any, config: RunnableConfig | None = None) -> Any:
    """The chat model with what is configurable about it as it was configured, for good."""
    if isinstance(chat, DynamicRunnable):
        inner, rest = chat.prepare(config)
        return configured(inner, rest)
    if isinstance(chat, RunnableBindingBase):
        return chat.model_copy(update={"bound": configured(chat.bound, merge_configs(chat.config, config))})
    if isinstance(chat, RunnableWithFallbacks):
        first, *others = (configured(each, config) for each in chat.runnables)
        return chat.model_copy(update={"runnable": first, "fallbacks": others})
    return chat


def adjusted(chat: Any, *, warmer: float, reply_tokens: int | None) -> Any:
    """A copy whose models are warmer, where a temperature is set, and bound their replies, where they do not yet.

    chat: settled. reply_tokens: the bound; None leaves replies as they are.
    """
    if isinstance(chat, RunnableBindingBase):
        names = [name for name in REPLY_LENGTH_NAMES if name in chat.kwargs]
        unbound = bool(names) and not _length(chat.kwargs) and reply_tokens is not None
        kwargs = {**chat.kwargs, **_warmed(chat.kwargs, warmer), **({names[0]: reply_tokens} if unbound else {})}
        inner = adjusted(chat.bound, warmer=warmer, reply_tokens=None if names else reply_tokens)
        return chat.model_copy(update={"bound": inner, "kwargs": kwargs})
    if isinstance(chat, RunnableWithFallbacks):
        first, *others = (adjusted(each, warmer=warmer, reply_tokens=reply_tokens) for each in chat.runnables)
        return chat.model_copy(update={"runnable": first, "fallbacks": others})
    own = _settings(chat)
    changes = _warmed(own, warmer)
    name = next((name for name in REPLY_LENGTH_NAMES if name in own), None)
    if reply_tokens is not None and name is not None and not _length(own):
        changes[name] = reply_tokens
    return chat.model_copy(update=changes) if changes else chat


def reply_tokens_of(chat: Any, unbound: int) -> int:
    """The most tokens that a call may bring back, over all branches; several replies a call (OpenAI's `n`) count each.

    unbound: the longest reply of a model that has no bound of its own.
    """

    def replies(branch: Branch) -> int:
        count = branch.setting("n")
        return count if isinstance(count, int) and count > 0 else 1

    return max((branch.reply_length or unbound) * replies(branch) for branch in branches(chat))


def to_fill_in(chat: Any, form: type[BaseModel]) -> Any | None:
    """The chat model with this form to fill in, as `with_structured_output`; None where it cannot have one.

    None too where arguments were bound: LangChain would leave them out. chat: settled.
    """
    if isinstance(chat, RunnableBindingBase):
        inner = None if chat.kwargs else to_fill_in(chat.bound, form)
        if inner is None:
            return None
        return (
            inner.with_config(chat.config)
            if isinstance(chat, RunnableBinding)
            else chat.model_copy(update={"bound": inner})
        )
    if isinstance(chat, RunnableWithFallbacks):
        first, *others = (to_fill_in(each, form) for each in chat.runnables)
        if first is None or None in others:
            return None
        return first.with_fallbacks(others, exceptions_to_handle=chat.exceptions_to_handle)
    try:
        return chat.with_structured_output(form, include_raw=True)
    except NotImplementedError:
        return None
    except TypeError as error:  # an older method; without the raw message, nobody knows what a call cost
        if "include_raw" not in str(error):
            raise
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
