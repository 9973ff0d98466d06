"""Shared by the tests of the editor: two prompts, a failure, and chat models with the fields of real ones."""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import Field, SecretStr

from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.reward import SUGGESTION_PREFIX
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example
from nslora.tools.testing.scripted_chat import ScriptedChat


class RefusedRequestError(Exception):
    """What a provider's client raises if the server refuses a request for its content, such as its length."""

    status_code = 400


OLD = Prompt("Be brief.", demonstrations=(Demonstration("Who?", "Ada"),))

NEW = Prompt("Reply in capitals.", demonstrations=(Demonstration("Who?", "ADA"),))


def failure(number: int = 1, reply: str = "ada", feedback: str = "Use capitals.", right: str | None = None) -> Graded:
    shown = f"{feedback}\n{SUGGESTION_PREFIX}{right}" if right else feedback
    example = Example(f"train-{number}", f"Question {number}?", "Ada", {})
    return Graded(example, reply, Score(0.5, {"style": 0.0}, shown, right))


def texts(messages: Sequence[BaseMessage]) -> list[str]:
    return [str(message.text) for message in messages]


class KeyedChat(ScriptedChat):
    """A scripted model with the fields of real ones: name, key, temperature and longest reply."""

    model_name: str = "tiny-1"
    api_key: SecretStr = SecretStr("a-plain-secret")
    temperature: float | None = 0.5
    max_tokens: int | None = None


class StructuredChat(ScriptedChat):
    """A model whose profile says that it has structured output."""

    asked_for: list[Any] = Field(default_factory=list)
    profile: Any = Field(default_factory=lambda: {"structured_output": True})

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        self.asked_for.append(schema)

        def fill(messages: Any) -> dict[str, Any]:
            raw = self.invoke(messages)
            return {"raw": raw, "parsed": schema.model_validate_json(str(raw.text)), "parsing_error": None}

        return RunnableLambda(fill)


def counted(text: str, tokens_in: int = 100, tokens_out: int = 20) -> AIMessage:
    usage = UsageMetadata(input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out)
    return AIMessage(text, usage_metadata=usage)
