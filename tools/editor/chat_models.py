"""From the editor's name in the settings to a LangChain chat model, and to a name for records that holds no API key."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from nslora.tools.editor.redaction import scrub
from nslora.tools.editor.wrapped_chat import RETRIES_NAMES, Branch, Chat, branches, configured
from nslora.tools.errors import ModelError, first_line

KNOWN = (
    "'rules' (embedded, no network), 'policy' (the tuned model itself), 'provider:model' such as 'openai:gpt-4o', "
    "'anthropic:...' or 'ollama:...', a model's name with base_url= for any OpenAI-compatible server, "
    "'gguf:FILE' for a GGUF file on llama.cpp's server, "
    "'recorded:FILE' for the editor.jsonl of an earlier run, or a LangChain chat model object"
)
TIMEOUT_S = 180.0  # of one request; OpenAI's client would wait 600 s
LOCAL_TIMEOUT_S = 1800.0  # a 1.5B model on two busy cores reads 1,300 tokens in three minutes
MODEL_NAMES = ("model_name", "model", "model_id")
# The names of this setting in the integrations, as fields or as aliases of fields.
TIMEOUT_NAMES = ("timeout", "request_timeout", "default_request_timeout")


def connect_editor(
    spec: str | Chat,
    *,
    base_url: str | None = None,
    policy_chat: Callable[[], BaseChatModel] | None = None,
    timeout_s: float | None = None,
) -> Chat:
    """Create the chat model that a name stands for; no request is sent.

    Integrations read API keys from the environment themselves. Their own retries are turned off: `EditorCalls` makes a
    call again, where caps and the record see it.

    Args:
        spec: A name (see `KNOWN`), or a chat model, which is returned unchanged.
        base_url: An OpenAI-compatible server (vLLM, llama.cpp, Ollama); `spec` is then the model's name on it. The key
            is taken from OPENAI_API_KEY, if that is set.
        policy_chat: Creates the chat model for "policy".
        timeout_s: Timeout of one request, in seconds, if the integration has this setting; None: `TIMEOUT_S`, or
            `LOCAL_TIMEOUT_S` for a GGUF file.

    Raises:
        ModelError: The name is unknown, or a package or key is missing; the message says what to do.
    """
    if not isinstance(spec, str):
        names_of(spec)
        return spec
    if not spec.strip():
        raise ModelError(f"The editor {spec!r} is unknown: wanted {KNOWN}.")
    if base_url is not None and (spec in ("rules", "policy") or spec.startswith(("recorded:", "gguf:"))):
        raise ModelError(
            f"The editor {spec!r} has no server: beside editor_base_url (--base-url) name the model that "
            "the server calls, as in --editor my-model."
        )
    if base_url is not None:
        if not base_url.startswith(("http://", "https://")):
            raise ModelError(f"base_url={base_url!r} is no address: wanted one such as http://127.0.0.1:8000/v1.")
        return _chat_openai(spec.removeprefix("openai:"), base_url, timeout_s or TIMEOUT_S)
    if spec == "rules":
        from nslora.tools.editor.rule_editor import RuleEditor

        return RuleEditor()
    if spec == "policy":
        if policy_chat is None:
            raise ModelError("The editor 'policy' needs a policy that can chat, and this command has none.")
        return policy_chat()
    provider, _, model = spec.partition(":")
    if not provider or not model:
        raise ModelError(f"The editor {spec!r} is unknown: wanted {KNOWN}.")
    if provider == "recorded":
        from nslora.tools.editor.call_log import RecordedChat

        if not os.path.isfile(model):
            raise ModelError(f"There is no record {Path(model)}: name the editor.jsonl of an earlier run.")
        return RecordedChat(model)
    if provider == "gguf":
        from nslora.tools.editor.llama_cpp import llama_cpp_chat

        return llama_cpp_chat(model, timeout_s=timeout_s or LOCAL_TIMEOUT_S)
    return _of_provider(provider, model, timeout_s or TIMEOUT_S)


def editor_name(chat: Chat) -> str:
    """Name an editor for records and price tables: class and model (`ChatOpenAI:gpt-4o`), or `rules`.

    The name holds neither an address nor a key. A replayed record has the name of the editor that was recorded, a
    wrapper the name of the first model inside.

    Raises:
        ModelError: `chat` is not a chat model.
    """
    return names_of(chat)[0]


def names_of(chat: Chat) -> list[str]:
    """Name all models that may answer. Raises ModelError if one of them is not a chat model."""
    return [_name_of(branch) for branch in branches(configured(chat))]


def _name_of(branch: Branch) -> str:
    if recorded := getattr(branch.model, "recorded_name", ""):
        return str(recorded)
    kind = type(branch.model).__name__
    if not isinstance(branch.model, BaseChatModel):
        raise ModelError(
            f"The editor has the type {kind}, which is no chat model: wanted {KNOWN}, also inside bind, with_config, "
            "with_fallbacks or with_retry, or a configurable one."
        )
    names = [*map(branch.bound.get, MODEL_NAMES), *(getattr(branch.model, name, None) for name in MODEL_NAMES)]
    name = next((name for name in names if isinstance(name, str) and name), "")
    return f"{kind}:{name}" if name else branch.model._llm_type


def _of_provider(provider: str, model: str, timeout_s: float) -> BaseChatModel:
    """Integrations raise errors of their own for a missing package, a missing key or an unknown provider."""
    name = f"{provider}:{model}"
    has_registry = importlib.util.find_spec("langchain") is not None
    if not has_registry and provider != "openai":
        raise ModelError(
            f"The editor '{name}' needs LangChain's model registry: pip install langchain langchain-{provider}."
        )
    try:
        if not has_registry:
            return _chat_openai(model, None, timeout_s)
        from langchain.chat_models import init_chat_model

        first: BaseChatModel = init_chat_model(model, model_provider=provider)
        transport = transport_settings(type(first), timeout_s)
        return init_chat_model(model, model_provider=provider, **transport) if transport else first
    except ImportError as error:
        said = scrub(first_line(error))
        raise ModelError(f"The editor '{name}' needs another package: {said}") from error
    except Exception as error:
        said = f"{type(error).__name__}: {scrub(first_line(error))}"
        remedy = f"known are {KNOWN}" if "rovider" in said else "set what its integration of LangChain asks for"
        raise ModelError(f"The editor '{name}' cannot be connected ({said}); {remedy}.") from error


def transport_settings(kind: type[BaseChatModel], timeout_s: float) -> dict[str, Any]:
    """The arguments by which this integration takes a timeout and makes no retries; only those that it has."""
    names = {field.alias or name for name, field in kind.model_fields.items()}
    wanted = [(TIMEOUT_NAMES, timeout_s), (RETRIES_NAMES, 0)]
    settings: dict[str, Any] = {name: value for known, value in wanted for name in known if name in names}
    # langchain-ollama has no timeout, but passes client_kwargs on to its HTTP client.
    field = kind.model_fields.get("client_kwargs")
    default = field.get_default(call_default_factory=True, validated_data={}) if field else None
    if isinstance(default, Mapping) and not names & set(TIMEOUT_NAMES):
        settings["client_kwargs"] = {"timeout": timeout_s}
    return settings


def _chat_openai(model: str, base_url: str | None, timeout_s: float) -> BaseChatModel:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    if base_url is None:
        return ChatOpenAI(model=model, timeout=timeout_s, max_retries=0)
    # A local server asks for no key, but the client does not start without one.
    key = SecretStr(os.environ.get("OPENAI_API_KEY") or "none")
    return ChatOpenAI(model=model, base_url=base_url, api_key=key, timeout=timeout_s, max_retries=0)
