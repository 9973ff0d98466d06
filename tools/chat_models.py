"""From what a user names as the editor to a LangChain chat model, and to a name for records that holds no key."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

from langchain_core.language_models import BaseChatModel

from nslora.tools.errors import ModelError

KNOWN = (
    "'rules' (embedded, no network), 'policy' (the tuned model itself), 'provider:model' such as 'openai:gpt-4o', "
    "'anthropic:...' or 'ollama:...', a model's name with base_url= for any OpenAI-compatible server, or a LangChain "
    "chat model object"
)


def connect_editor(
    spec: str | BaseChatModel,
    *,
    base_url: str | None = None,
    policy_chat: Callable[[], BaseChatModel] | None = None,
) -> BaseChatModel:
    """The chat model that a spec names; no request is sent.

    base_url: an OpenAI-compatible server (vLLM, llama.cpp, Ollama), asked for the model named by spec with the key in
    OPENAI_API_KEY, if there is one. policy_chat: makes the chat model of "policy". Keys are read from the environment
    by the integrations themselves. Raises ModelError, naming what is known or what to install.
    """
    if isinstance(spec, BaseChatModel):
        return spec
    if not isinstance(spec, str) or not spec.strip():
        raise ModelError(f"The editor {spec!r} is unknown: wanted {KNOWN}.")
    if base_url is not None:
        return _openai_server(spec.removeprefix("openai:"), base_url)
    if spec == "rules":
        from nslora.tools.rule_editor import RuleEditor

        return RuleEditor()
    if spec == "policy":
        if policy_chat is None:
            raise ModelError("The editor 'policy' needs a policy that can chat, and this command has none.")
        return policy_chat()
    provider, colon, model = spec.partition(":")
    if not colon or not provider or not model:
        raise ModelError(f"The editor {spec!r} is unknown: wanted {KNOWN}.")
    return _of_provider(provider, model)


def editor_name(chat: BaseChatModel) -> str:
    """`ChatOpenAI:gpt-4o`, `rules`: class and model, for records and price tables; never an address or a key."""
    for attribute in ("model_name", "model", "model_id"):
        value = getattr(chat, attribute, None)
        if isinstance(value, str) and value:
            return f"{type(chat).__name__}:{value}"
    return chat._llm_type


def _of_provider(provider: str, model: str) -> BaseChatModel:
    if importlib.util.find_spec("langchain") is None:
        if provider != "openai":
            raise ModelError(
                f"The editor '{provider}:{model}' needs LangChain's model registry: pip install langchain "
                f"langchain-{provider}."
            )
        return _connected(lambda: _chat_openai(model), provider, model)
    from langchain.chat_models import init_chat_model

    return _connected(lambda: init_chat_model(model, model_provider=provider), provider, model)


def _connected(connect: Callable[[], BaseChatModel], provider: str, model: str) -> BaseChatModel:
    """Integrations raise their own errors for a missing package, a missing key or an unknown provider."""
    try:
        return connect()
    except ImportError as error:
        raise ModelError(f"The editor '{provider}:{model}' needs another package: {_first_line(error)}") from error
    except Exception as error:
        raise ModelError(
            f"The editor '{provider}:{model}' cannot be connected ({type(error).__name__}: {_first_line(error)}); "
            f"known are {KNOWN}."
        ) from error


def _openai_server(model: str, base_url: str) -> BaseChatModel:
    if not base_url.startswith(("http://", "https://")):
        raise ModelError(f"base_url={base_url!r} is no address: wanted one such as http://127.0.0.1:8000/v1.")
    return _chat_openai(model, base_url)


def _chat_openai(model: str, base_url: str | None = None) -> BaseChatModel:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    if base_url is None:
        return ChatOpenAI(model=model)
    # A local server asks for no key, but the client refuses to start without one.
    return ChatOpenAI(model=model, base_url=base_url, api_key=SecretStr(os.environ.get("OPENAI_API_KEY") or "none"))


def _first_line(error: Exception) -> str:
    from nslora.tools.editor_calls import scrub

    return scrub((str(error).strip() or type(error).__name__).splitlines()[0])
