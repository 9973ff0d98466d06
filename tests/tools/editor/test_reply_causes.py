"""Why a reply has no text, in the shape of each provider: OpenAI's as it is, others by their documentation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edits import NEW, OLD, KeyedChat, failure
from langchain_core.messages import AIMessage, UsageMetadata

from nslora.tools.editor.call_log import EditorLog, RecordedCall
from nslora.tools.editor.editor import EditFailedError, Editor, Usage
from nslora.tools.editor.reply_causes import finish_reason_of, refusal_of, why_cut_off, why_final
from nslora.tools.testing.scripted_chat import ScriptedChat, improved


def said(content: Any = "", refusal: str | None = None, **metadata: Any) -> AIMessage:
    extra = {} if refusal is None else {"refusal": refusal}
    return AIMessage(content, additional_kwargs=extra, response_metadata=metadata)


SHAPES: dict[str, tuple[AIMessage, str, str]] = {
    "OpenAI, refusal": (said(refusal="No.", finish_reason="stop"), "stop", "refused the request: 'No.'"),
    "OpenAI, length": (said(finish_reason="length"), "length", "spent the whole length"),
    "OpenAI, filter": (said(finish_reason="content_filter"), "content_filter", "content filter stopped"),
    "Responses, length": (
        said(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
        "max_output_tokens",
        "spent the whole length",
    ),
    "Responses, refusal": (said([{"type": "refusal", "refusal": "No."}], status="completed"), "", "refused.*'No.'"),
    "Responses v1, refusal": (
        said([{"type": "non_standard", "value": {"type": "refusal", "refusal": "No."}}]),
        "",
        "refused.*'No.'",
    ),
    "Anthropic, length": (
        said([{"type": "thinking", "thinking": "Well", "signature": "x"}], stop_reason="max_tokens"),
        "max_tokens",
        "spent the whole length",
    ),
    "Anthropic, refusal": (said("Half a", stop_reason="refusal"), "refusal", r"refused the request \("),
    "Bedrock, filter": (said(stopReason="guardrail_intervened"), "guardrail_intervened", "content filter stopped"),
    "Gemini, length": (
        said(finish_reason="MAX_TOKENS", prompt_feedback={"block_reason": 0, "safety_ratings": []}),
        "MAX_TOKENS",
        "spent the whole length",
    ),
    "Gemini, safety": (said(finish_reason="SAFETY"), "SAFETY", "content filter stopped"),
    "Gemini, blocked request": (
        said(prompt_feedback={"block_reason": "PROHIBITED_CONTENT"}),
        "PROHIBITED_CONTENT",
        "content filter stopped",
    ),
    "Ollama, length": (said(done_reason="length", done=True), "length", "spent the whole length"),
    "vLLM, length": (said("<think>Well", finish_reason="length", stop_reason=None), "length", "spent the whole length"),
}
WHOLE: dict[str, AIMessage] = {
    "OpenAI": said("ok", finish_reason="stop"),
    "Anthropic": said("ok", stop_reason="end_turn"),
    "Gemini": said("ok", finish_reason="STOP", prompt_feedback={"block_reason": "BLOCK_REASON_UNSPECIFIED"}),
    "Ollama": said("ok", done_reason="stop"),
    "a stop text": said("ok", finish_reason="stop", stop_reason="\n\n"),
    "nothing told": said("ok"),
    "nothing said": said(""),
}


def call(message: AIMessage) -> RecordedCall:
    return RecordedCall(
        request_sha256="",
        model="x",
        purpose="critique",
        reply=str(message.text),
        input_tokens=1,
        output_tokens=9,
        estimated=False,
        seconds=0.0,
        finish_reason=finish_reason_of(message),
        refusal=refusal_of(message),
    )


@pytest.mark.parametrize(("message", "reason", "why"), SHAPES.values(), ids=SHAPES)
def test_each_provider_s_reason_is_read_and_told(message: AIMessage, reason: str, why: str, tmp_path: Path) -> None:
    assert finish_reason_of(message) == reason
    assert not refusal_of(message) or refusal_of(message) == "No."
    message.usage_metadata = UsageMetadata(input_tokens=1, output_tokens=9, total_tokens=10)
    chat = ScriptedChat([message], repeat=True)
    with pytest.raises(EditFailedError, match=why) as caught:
        Editor(chat, log=EditorLog(tmp_path / "editor.jsonl")).edit(OLD, [failure()])
    assert len(chat.requests) == 1
    assert caught.value.usage.tokens == 10
    (problem,) = EditorLog(tmp_path / "editor.jsonl").problems()
    assert (problem["why"], problem["call_failed"], problem["times"]) == (str(caught.value), False, 1)


@pytest.mark.parametrize("message", WHOLE.values(), ids=WHOLE)
def test_a_reply_that_came_whole_has_no_cause(message: AIMessage) -> None:
    assert (why_final(call(message)), why_cut_off(call(message))) == ("", "")


def test_a_reply_that_was_cut_off_says_so_only_if_it_has_text() -> None:
    half = replace(call(said("half", finish_reason="length")), reasoning_tokens=4)
    assert why_final(half) == ""
    assert "cut off at its length limit (finish_reason length, 9 output tokens, 4 of them for" in why_cut_off(half)


@pytest.mark.parametrize("half", ["", "<IMPROVED_VARIABLE> half"])
def test_a_longer_reply_that_is_allowed_later_is_asked_for(half: str, tmp_path: Path) -> None:
    log = EditorLog(tmp_path / "editor.jsonl")
    short = KeyedChat(["critique", said(half, finish_reason="length")], max_tokens=100)
    for _ in range(2):
        with pytest.raises(EditFailedError, match="length"):
            Editor(short, log=log).edit(OLD, [failure()])
    assert len(short.requests) == 2
    long = KeyedChat([improved(NEW)], max_tokens=1000)
    for _ in range(2):
        assert Editor(long, log=log).edit(OLD, [failure()]).prompts == (NEW,)
    assert len(long.requests) == 1


def test_an_edit_for_which_there_is_no_time_left_does_not_count_against_the_editor() -> None:
    editor = Editor(ScriptedChat([]), patience=1)
    for left in ({"until": 0.0}, {"tokens_left": 1.0}):
        editor.continue_from(0, Usage(), **left)  # type: ignore[arg-type]
        with pytest.raises(EditFailedError, match="leave no") as caught:
            editor.edit(OLD, [failure()])
        assert (editor.consecutive_failures, caught.value.disabled) == (0, False)
