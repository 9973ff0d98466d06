"""Clients that know nothing of a prompt: they send questions, as any program would that meets the exported model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from nslora.tools.errors import ExportError, first_line
from nslora.tools.export.template import SWITCH
from nslora.tools.schema import Dialogue

TIMEOUT_S = 600.0  # a model of several billion weights on a CPU


def ask_server(
    base_url: str,
    dialogues: Sequence[Dialogue],
    *,
    max_new_tokens: int,
    model: str | None = None,
    prompt: bool = True,
) -> list[str]:
    """The replies of an OpenAI-compatible server, greedy, one request a question.

    Args:
        base_url: Its address with `/v1`.
        dialogues: What is asked.
        max_new_tokens: Length limit of a reply.
        model: The model's name on the server; None: the first that it names.
        prompt: False switches the exported prompt off.

    Raises:
        ExportError: If the server does not answer as this protocol wants.
    """
    switch = {} if prompt else {"chat_template_kwargs": {SWITCH: False}}
    replies = []
    try:
        with httpx.Client(base_url=base_url, timeout=TIMEOUT_S) as client:
            model = model or client.get("models").raise_for_status().json()["data"][0]["id"]
            for dialogue in dialogues:
                body = {"model": model, "messages": list(dialogue), "max_tokens": max_new_tokens, "temperature": 0}
                answer = client.post("chat/completions", json={**body, **switch})
                replies.append(_content_of(answer.raise_for_status().json()))
    except httpx.HTTPStatusError as error:
        said = f"{error.response.status_code}: {error.response.text.strip()[:200]}"
        raise ExportError(f"The server at {base_url} refused a question ({said}).") from error
    except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ExportError(f"The server at {base_url} does not answer ({first_line(error)}).") from error
    return replies


def _content_of(answer: Any) -> str:
    """The text of a reply; servers may hand over thinking apart from it."""
    return str(answer["choices"][0]["message"]["content"] or "").strip()


def ask_folder(folder: Path, dialogues: Sequence[Dialogue], *, max_new_tokens: int, prompt: bool = True) -> list[str]:
    """The replies of a merged folder by transformers, as its model card would tell anyone to ask."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    switch = {} if prompt else {SWITCH: False}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    replies = []
    for dialogue in dialogues:
        asked = tokenizer.apply_chat_template(
            list(dialogue), add_generation_prompt=True, return_tensors="pt", return_dict=True, **switch
        )
        with torch.no_grad():
            ids = model.generate(**asked, max_new_tokens=max_new_tokens)
        replies.append(str(tokenizer.decode(ids[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)).strip())
    return replies
