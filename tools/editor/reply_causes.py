"""Why a reply has no usable text: refused, filtered, cut off at its length, or empty.

Each provider says it in a field of its own. The shapes that are read:

- OpenAI, vLLM, llama.cpp, Mistral: `finish_reason` ("length", "content_filter"), and `message.refusal`;
- OpenAI's Responses API: `incomplete_details.reason`, and content blocks of the type "refusal";
- Anthropic: `stop_reason` ("max_tokens", "refusal"); Bedrock: `stopReason`;
- Gemini: `finish_reason` ("MAX_TOKENS", "SAFETY"), and `prompt_feedback.block_reason` if it did not answer at all;
- Ollama: `done_reason` ("length").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage

if TYPE_CHECKING:
    from nslora.tools.editor.call_log import RecordedCall

REASON_NAMES = ("finish_reason", "stop_reason", "stopReason", "done_reason")
LENGTH = {"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"}
FILTER = {
    *("content_filter", "content_filtered", "guardrail_intervened", "error_toxic"),
    *("safety", "recitation", "blocklist", "prohibited_content", "spii", "language", "jailbreak", "model_armor"),
}
REFUSAL = {"refusal"}
SHOWN_CHARACTERS = 300  # of a refusal, in an error message
SETTINGS = {"editor": "editing", "judge": "judging"}  # of a chat model in this role


def finish_reason_of(message: AIMessage) -> str:
    """Why the model stopped, in the provider's own word; "" if it does not say."""
    told: Mapping[str, Any] = message.response_metadata
    found = [told.get(name) for name in REASON_NAMES]
    found += [_part(told.get("incomplete_details"), "reason"), _part(told.get("prompt_feedback"), "block_reason")]
    names = [str(getattr(each, "name", each)) for each in found if each]
    return next((name for name in names if not name.upper().endswith("UNSPECIFIED")), "")


def refusal_of(message: AIMessage) -> str:
    """What the model said when it refused; "" if it did not."""
    blocks: list[Any] = message.content if isinstance(message.content, list) else []
    values = [_part(block, "value") or block for block in blocks]
    found = [message.additional_kwargs.get("refusal"), *(_part(value, "refusal") for value in values)]
    return next((str(each) for each in found if each), "")


def reasoning_tokens_of(message: AIMessage) -> int:
    """Output tokens that went into reasoning; 0 if the provider does not count them."""
    usage: Mapping[str, Any] = message.usage_metadata or {}
    count = (usage.get("output_token_details") or {}).get("reasoning")
    return count if type(count) is int and count > 0 else 0


def written(reply: str) -> str:
    """The part of a reply after its last think block."""
    return reply.rpartition("</think>")[2].partition("<think>")[0].strip()


def why_final(call: RecordedCall, role: str = "editor") -> str:
    """Why the same request must not be sent again, in one sentence with the remedy; "" if it may be."""
    kind = call.finish_reason.lower()
    said = f": {call.refusal[:SHOWN_CHARACTERS]!r}" if call.refusal else ""
    if call.refusal or kind in REFUSAL:
        return (
            f"The {role} {call.model} refused the request{said} ({_numbers(call)}): look in its rows and its prompt "
            f"for what it refuses, or choose another {role}."
        )
    if written(call.reply):
        return ""
    if kind in FILTER:
        return (
            f"A content filter stopped the reply of the {role} {call.model} ({_numbers(call)}): look for what it "
            f"filters in the task's rows, or choose another {role}."
        )
    if kind in LENGTH:
        return (
            f"The {role} {call.model} spent the whole length of its reply before it wrote any text ({_numbers(call)}), "
            f"as reasoning models do: {_longer(role)}, or have it reason less."
        )
    return ""


def why_empty(call: RecordedCall, role: str = "editor") -> str:
    """What is known of a reply without text, in one sentence with the remedy."""
    return (
        f"The {role} {call.model} answered without any text ({_numbers(call)}): see whether its server keeps the text "
        f"elsewhere (a reasoning parser, a tool call), or choose another {role}."
    )


def why_cut_off(call: RecordedCall, role: str = "editor") -> str:
    """Why a reply with text ended before its end, in one sentence with the remedy; "" if it came whole."""
    kind = call.finish_reason.lower()
    if kind in LENGTH:
        return (
            f"The reply of the {role} {call.model} was cut off at its length limit ({_numbers(call)}): {_longer(role)}."
        )
    if kind in FILTER:
        return f"A content filter cut off the reply of the {role} {call.model} ({_numbers(call)}): choose another one."
    return ""


def _longer(role: str) -> str:
    return (
        f"allow longer replies (max_tokens of the chat model, --set {SETTINGS[role]}.reply_tokens=N where the {role} "
        "has a cap, --set editing.policy_reply_tokens=N of the policy, or the limit of its server)"
    )


def _numbers(call: RecordedCall) -> str:
    reasoning = f", {call.reasoning_tokens} of them for reasoning" if call.reasoning_tokens else ""
    about = "about " if call.estimated else ""
    return f"finish_reason {call.finish_reason or 'not told'}, {about}{call.output_tokens} output tokens{reasoning}"


def _part(value: Any, name: str) -> Any:
    """A key of a mapping, or an attribute of an object."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
