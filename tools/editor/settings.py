"""Settings of the symbolic editor, and the most that it may cost."""

from typing import Literal

from pydantic import Field

from nslora.tools.schema import Settings

Protocol = Literal["reflect", "textgrad"]
MOST_DOCUMENTS = 3  # in one reply by "reflect"


class Price(Settings):
    """Price of a chat model per million tokens, in any currency."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class CallSettings(Settings):
    """The most that the calls of a chat model may cost, and whether it fills in fields.

    structured: "auto" uses structured output instead of tags if the model's profile says that it has it; "always" is
    for a server that has it with any model (vLLM, llama.cpp, Ollama).
    """

    max_calls: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=0)  # input and output together
    max_cost: float | None = Field(None, ge=0)  # in the currency of `prices`
    prices: dict[str, Price] = Field(default_factory=dict)  # by model name, as in "gpt-4o"
    structured: Literal["auto", "always", "never"] = "auto"


class EditorSettings(CallSettings):
    """How the symbolic editor is asked, and the most that it may cost in a run.

    protocol: "reflect" asks once, with rows by number, for an analysis and one or several documents; "textgrad" asks
    for a critique of each failure and then for a document. The rule editor is always asked by "textgrad". timeout_s is
    used when a chat model is created by name; a chat model object keeps its own, and its own retries if it has any.
    """

    protocol: Protocol = "reflect"
    # Of a request by "reflect", as estimated. None: 2000, or 1000 beside the document and its rules if that is more.
    max_input_tokens: int | None = Field(None, ge=1000)
    edit: Literal["document", "system", "question", "demonstrations"] = "document"
    failures: int | None = Field(None, ge=1)  # shown in one edit; None: 20, if they fit, or 4 by "textgrad"
    # Most prompts per edit; if several, they are screened and the best is proposed. None: 3, or 1 by "textgrad".
    candidates: int | None = Field(None, ge=1)
    screening_rows: int = Field(8, ge=2)  # train rows for screening, half failing, half passing
    retries: int = Field(2, ge=0)  # times that an unusable reply is sent back with the reason
    patience: int = Field(3, ge=1)  # edits in a row with unusable replies, then the editor is not called any more
    reply_tokens: int = Field(4096, ge=1)  # longest reply that is requested under a cap
    protected: tuple[str, ...] = ()  # texts that must stay in the prompt, word for word
    rules: tuple[str, ...] = ()  # further sentences that the editor must follow
    timeout_s: float | None = Field(None, gt=0)  # of one request; None: 180, or 1800 for a GGUF file on this machine
    transport_retries: int = Field(2, ge=0)  # after a timeout, a lost connection, a rate limit or a server error
    policy_reply_tokens: int = Field(768, ge=16)  # longest reply of the editor "policy"

    def under(self, protocol: Protocol) -> "EditorSettings":
        """The settings with all that is left open, under this protocol."""
        failures, candidates = (4, 1) if protocol == "textgrad" else (20, MOST_DOCUMENTS)
        return self.model_copy(
            update={
                "protocol": protocol,
                "failures": self.failures or failures,
                "candidates": self.candidates or candidates,
            }
        )

    def calls(self, candidates: int = 1) -> int:
        """Calls of an edit with so many candidates, if no reply is asked for again; of settings from `under`."""
        return 1 if self.protocol == "reflect" else (self.failures or 0) + candidates


class JudgeSettings(CallSettings):
    """The most that each `judge` check may cost in a run, and how it is asked.

    A call that a cap does not allow stops the run, which can go on in a fork under another cap: a reply without a
    judgement has no score. A fork and a replay count from their own beginning.
    """

    reply_tokens: int = Field(1024, ge=1)  # longest verdict that is requested under a cap
    transport_retries: int = Field(4, ge=0)  # after a timeout, a lost connection, a rate limit or a server error
