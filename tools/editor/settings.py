"""Settings of the symbolic editor, and the most that it may cost."""

from typing import Literal

from pydantic import Field

from nslora.tools.schema import Settings


class Price(Settings):
    """Of a chat model, in any currency, per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class EditorSettings(Settings):
    """How the symbolic editor is asked, and the most that it may cost in a run.

    Each failure that is shown is one call and about 2000 tokens of the last one. timeout_s and transport_retries go to
    chat models that are named; a chat model object keeps its own.
    """

    edit: Literal["document", "system", "question", "demonstrations"] = "document"
    failures: int = Field(4, ge=1)  # shown at once
    candidates: int = Field(1, ge=1)  # of an edit; several are screened before one is proposed
    screening_rows: int = Field(8, ge=2)  # train rows for that, half of them failing, half passing
    retries: int = Field(2, ge=0)  # an unusable reply is sent back with the reason, so often
    patience: int = Field(3, ge=1)  # failed edits in a row after which the editor is left alone
    max_calls: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=0)  # input and output together
    max_cost: float | None = Field(None, ge=0)  # in the currency of `prices`
    prices: dict[str, Price] = Field(default_factory=dict)  # by model name, as in "gpt-4o"
    reply_tokens: int = Field(4096, ge=1)  # longest reply that is asked for under a cap
    # Forms instead of tags: where the model's profile says that it can; "always" for a server such as vLLM, llama.cpp.
    structured: Literal["auto", "always", "never"] = "auto"
    protected: tuple[str, ...] = ()  # texts that must stay in the prompt, word for word
    rules: tuple[str, ...] = ()  # further sentences that the editor must follow
    timeout_s: float = Field(180.0, gt=0)  # of one request; a local model on a CPU may need minutes
    transport_retries: int = Field(2, ge=0)  # after a timeout, a rate limit or a server error
    policy_reply_tokens: int = Field(768, ge=16)  # longest reply of the editor "policy"
