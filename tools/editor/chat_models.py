"""From what a user names as the editor to a LangChain chat model, and to a name for records that holds no key."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from nslora.tools.editor.wrapped_chat import Branch, Chat, branches, configured
from nslora.tools.errors import ModelError, first_line

KNOWN = (
    "'rules' (embedded, no network), 'policy' (the tuned model itself), 'provider:model' such as 'openai:gpt-4o', "
    "'anthropic:...' or 'ollama:...', a model's name with base_url= for any OpenAI-compatible server, "
    "'recorded:FILE' for the editor.jsonl of an earlier run, or a LangChain chat model object"
)
# Seconds that one request may take, and how often the integration itself sends it again. Left alone, OpenAI's client
# waits 600 s.
TIMEOUT_S, TRANSPORT_RETRIES = 180.0, 2
MODEL_NAMES = ("model_name", "model", "model_id")
# Names under which integrations know these two, as fields or as their aliases.
TIMEOUT_NAMES, RETRIES_NAMES = ("timeout", "request_timeout", "default_request_timeout"), ("max_retries",)


def connect_editor(
    spec: str | Chat,
    *,
    base_url: str | None = None,
    policy_chat: Callable[[], BaseChatModel] | None = None,
    timeout_s: float = TIMEOUT_S,
    transport_retries: int = TRANSPORT_RETRIES,
) -> Chat:
    """The chat model that a spec names; no request is sent.

    base_url: an OpenAI-compatible server (vLLM, llama.cpp, Ollama), asked for the model named by spec with the key in
    OPENAI_API_KEY, if there is one. policy_chat: makes the chat model of "policy". Keys are read from the environment
    by the integrations themselves. timeout_s of one request and transport_retries (after timeouts, rate limits and
    server errors) are set where the integration has such settings; an object is taken as it is.
    Raises ModelError, naming what is known or what to install.
    """
    if not isinstance(spec, str):
        _ = names_of(spec)
        return spec
    if not spec.strip():
        raise ModelError(f"The editor {spec!r} is unknown: wanted {KNOWN}.")
    if base_url is not None and (spec in ("rules", "policy") or spec.startswith("recorded:")):
        raise ModelError(
            f"The editor {spec!r} has no server: beside editor_base_url (--base-url) name the model that "
            "the server calls, as in --editor my-model."
        )
    if base_url is not None:
        return _openai_server(spec.removeprefix("openai:"), base_url, timeout_s, transport_retries)
    if spec == "rules":
        from nslora.tools.editor.rule_editor import RuleEditor

        return RuleEditor()
    if spec == "policy":
        if policy_chat is None:
            raise ModelError("The editor 'policy' needs a policy that can chat, and this command has none.")
        return policy_chat()
    provider, colon, model = spec.partition(":")
    if not colon or not provider or not model:
        raise ModelError(f"The editor {spec!r} is unknown: wanted {KNOWN}.")
    if provider == "recorded":
        return _recorded(Path(model))
    return _of_provider(provider, model, timeout_s, transport_retries)


def editor_name(chat: Chat) -> str:
    """`ChatOpenAI:gpt-4o`, `rules`: class and model, for records and price tables; never an address or a key.

    The record of an editor goes by that editor's name, a wrapper by the first model inside. Raises ModelError.
    """
    return names_of(chat)[0]


def names_of(chat: Chat) -> list[str]:
    """The names of all models that may answer. Raises ModelError where one of them is no chat model."""
    return [_name_of(branch) for branch in branches(configured(chat))]


def _name_of(branch: Branch) -> str:
    if recorded := getattr(branch.model, "recorded_name", ""):
        return str(recorded)
    kind = type(branch.model).__name__
    if not isinstance(branch.model, BaseChatModel):
        raise ModelError(
            f"The editor is a {kind}, which is no chat model: wanted {KNOWN}, or a chat model of "
            "LangChain itself (bind, with_config, with_fallbacks and with_retry are understood)."
        )
    names = [*map(branch.bound.get, MODEL_NAMES), *(getattr(branch.model, name, None) for name in MODEL_NAMES)]
    name = next((name for name in names if isinstance(name, str) and name), "")
    return f"{kind}:{name}" if name else branch.model._llm_type


def _recorded(path: Path) -> BaseChatModel:
    from nslora.tools.editor.call_log import RecordedChat

    if not os.path.isfile(path):
        raise ModelError(f"There is no record {path}: name the editor.jsonl of an earlier run.")
    return RecordedChat(path)


def _of_provider(provider: str, model: str, timeout_s: float, transport_retries: int) -> BaseChatModel:
    if importlib.util.find_spec("langchain") is None:
        if provider != "openai":
            raise ModelError(
                f"The editor '{provider}:{model}' needs LangChain's model registry: pip install langchain "
                f"langchain-{provider}."
            )
        return _connected(lambda: _chat_openai(model, None, timeout_s, transport_retries), provider, model)
    from langchain.chat_models import init_chat_model

    def connect() -> BaseChatModel:
        first: BaseChatModel = init_chat_model(model, model_provider=provider)
        transport = transport_settings(type(first), timeout_s, transport_retries)
        return init_chat_model(model, model_provider=provider, **transport) if transport else first

    return _connected(connect, provider, model)


def transport_settings(kind: type[BaseChatModel], timeout_s: float, transport_retries: int) -> dict[str, Any]:
    """The arguments by which this integration takes a timeout and a number of retries; only those that it knows."""
    names = {field.alias or name for name, field in kind.model_fields.items()}
    wanted = [(TIMEOUT_NAMES, timeout_s), (RETRIES_NAMES, transport_retries)]
    settings: dict[str, Any] = {name: value for known, value in wanted for name in known if name in names}
    # langchain-ollama hands these to the HTTP client under it.
    if not names & set(TIMEOUT_NAMES) and isinstance(_default(kind, "client_kwargs"), Mapping):
        settings["client_kwargs"] = {"timeout": timeout_s}
    return settings


def _default(kind: type[BaseChatModel], name: str) -> Any:
    field = kind.model_fields.get(name)
    return field.get_default(call_default_factory=True, validated_data={}) if field else None


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


def _openai_server(model: str, base_url: str, timeout_s: float, transport_retries: int) -> BaseChatModel:
    if not base_url.startswith(("http://", "https://")):
        raise ModelError(f"base_url={base_url!r} is no address: wanted one such as http://127.0.0.1:8000/v1.")
    return _chat_openai(model, base_url, timeout_s, transport_retries)


def _chat_openai(model: str, base_url: str | None, timeout_s: float, transport_retries: int) -> BaseChatModel:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    if base_url is None:
        return ChatOpenAI(model=model, timeout=timeout_s, max_retries=transport_retries)
    # A local server asks for no key, but the client refuses to start without one.
    key = SecretStr(os.environ.get("OPENAI_API_KEY") or "none")
    return ChatOpenAI(model=model, base_url=base_url, api_key=key, timeout=timeout_s, max_retries=transport_retries)


def _first_line(error: Exception) -> str:
    from nslora.tools.editor.redaction import scrub

    return scrub(first_line(error))
