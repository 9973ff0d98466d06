"""Dialogues as tokens: chat template, end of turn and padding, for any causal model."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from nslora.tools.errors import ModelError, first_line
from nslora.tools.schema import Dialogue

ASKED, MARK = [{"role": "user", "content": "a"}], "Zq7MARK7qZ"  # a dialogue that shows how a template writes
# The format for a model without a chat template; the reply ends before the next question.
PLAIN_LABELS = {"system": "", "user": "Question: ", "assistant": "Answer: "}
PLAIN_STOP = "\nQuestion:"
# Templates that write today's date get this one, Llama's own fallback, so that a prompt stays the same every day. The
# macro shadows transformers' function `strftime_now`, which cannot be replaced otherwise.
TEMPLATE_DATE = datetime(2024, 7, 26, tzinfo=UTC)
DATED = (
    "{%- macro strftime_now(pattern) -%}{{ pattern"
    + "".join(f" | replace('%{code}', '{TEMPLATE_DATE.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
    + " }}{%- endmacro -%}"
)


@dataclass(frozen=True)
class ChatFormat:
    """The chat template of one tokenizer, and the tokens that end and pad its replies.

    Attributes:
        tokenizer: A transformers tokenizer, with or without a chat template.
        generation_stops: The end tokens in the model's generation config.
        vocabulary: Number of the model's token embeddings; None if unknown.
    """

    tokenizer: Any
    generation_stops: tuple[int, ...] = ()
    vocabulary: int | None = None

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def render(self, dialogue: Dialogue) -> str:
        """Write the text that the policy continues: all turns, then the opening of the assistant's turn.

        Raises:
            ModelError: If the chat template cannot write the dialogue.
        """
        if self.has_template:
            if dialogue and dialogue[0]["role"] == "system" and not self._knows_system_turns:
                system, first, *rest = dialogue
                dialogue = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
            return self._written(dialogue, add_generation_prompt=True) + self._reply_header
        turns = [PLAIN_LABELS[turn["role"]] + turn["content"] for turn in dialogue]
        return "\n".join([*turns, PLAIN_LABELS["assistant"].rstrip()])

    def _written(self, dialogue: Dialogue, *, add_generation_prompt: bool = False) -> str:
        """Apply the chat template, with thinking switched off."""
        from jinja2 import TemplateError

        template = self.tokenizer.chat_template
        dated = DATED + template if isinstance(template, str) and "strftime_now" in template else None
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(dialogue),
                    chat_template=dated,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    enable_thinking=False,
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in dialogue)
            raise ModelError(
                f"The tokenizer's chat template cannot write a dialogue of {roles} ({first_line(error)}): give the "
                "tokenizer another chat_template."
            ) from error

    @cached_property
    def _knows_system_turns(self) -> bool:
        """Whether the template writes a system turn; some raise an error (Gemma's), some leave it out silently."""
        try:
            return MARK in self._written([{"role": "system", "content": MARK}, *ASKED])
        except ModelError:
            return False

    @cached_property
    def _around_reply(self) -> tuple[str, str]:
        """The template's text before and after the reply of a dialogue of two turns."""
        text = self._written([*ASKED, {"role": "assistant", "content": MARK}])
        before, found, after = text.rpartition(MARK)
        if not found:
            raise ModelError(
                "The tokenizer's chat template changes a reply or leaves it out, so no reply can be trained on: give "
                "the tokenizer another chat_template."
            )
        return before, after

    @cached_property
    def _reply_header(self) -> str:
        """The template's text between the opening of the assistant's turn and the reply; "" if only spaces.

        Harmony (gpt-oss) names the channel there. With it in the prompt, the model answers in the final channel.
        """
        opening, before = self._written(ASKED, add_generation_prompt=True), self._around_reply[0]
        opens = opening != self._written(ASKED)  # some templates leave the opening to the model
        header = before.removeprefix(opening)
        return header if opens and before.startswith(opening) and header.strip() else ""

    def prompt_ids(self, dialogue: Dialogue) -> list[int]:
        """Return the token ids of `render(dialogue)`.

        Raises:
            ModelError: If there are none, or the chat template cannot write the dialogue.
        """
        ids = self._open_ids(self.render(dialogue))
        if not ids:
            raise ModelError("The prompt has no tokens: give the question some text.")
        return ids

    def completion_ids(self, reply: str) -> list[int]:
        """Return the token ids of an assistant's reply and of the end of its turn."""
        ids = self.tokenizer(self._begun(reply), add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids] + [self.end_of_turn]

    def pair_ids(self, dialogue: Dialogue, reply: str) -> tuple[list[int], list[int]]:
        """Return the token ids of the dialogue, and those of the reply after it with the end of its turn.

        Both are cut from one text if possible: SentencePiece tokenizers put a space before each text, and a reply
        inside a dialogue has none.
        """
        prompt = self.prompt_ids(dialogue)
        whole = self._open_ids(self.render(dialogue) + self._begun(reply))
        if whole[: len(prompt)] == prompt:
            return prompt, [*whole[len(prompt) :], self.end_of_turn]
        return prompt, self.completion_ids(reply)

    def _open_ids(self, text: str) -> list[int]:
        """Token ids of a text that the model continues.

        A chat template writes its own special tokens. Without one the tokenizer adds them, and an end token at the end
        is removed: after it the model would not continue the text.
        """
        ids = [int(i) for i in self.tokenizer(text, add_special_tokens=not self.has_template)["input_ids"]]
        while ids and not self.has_template and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return ids

    def count(self, dialogue: Dialogue) -> int:
        """Count the tokens of the prompt, and of the reply if the last turn is one."""
        if not dialogue or dialogue[-1]["role"] != "assistant":
            return len(self.prompt_ids(dialogue))
        prompt, completion = self.pair_ids(dialogue[:-1], dialogue[-1]["content"])
        return len(prompt) + len(completion)

    def _begun(self, reply: str) -> str:
        """The reply as it stands after the opening of the assistant's turn."""
        return reply if self.has_template else f" {reply}"

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends the assistant's turn: the first special token after a reply, else the end of text."""
        if self.has_template:
            tail = self.tokenizer(self._around_reply[1], add_special_tokens=False)["input_ids"]
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
            for token in tail:
                if token in special:
                    return int(token)
        if self.tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no end token: set tokenizer.eos_token before you adapt this model.")
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """All tokens that end a reply."""
        end = self.tokenizer.eos_token_id
        return tuple(sorted({self.end_of_turn, *self.generation_stops, *(() if end is None else (int(end),))}))

    @property
    def pad_id(self) -> int:
        """The token that pads a batch; it may equal an end token, so padding is masked by length, never by this id.

        A pad token that was added to the tokenizer only has no embedding; the end of turn takes its place.
        """
        pad = self.tokenizer.pad_token_id
        known = pad is not None and (self.vocabulary is None or pad < self.vocabulary)
        return int(pad) if known else self.end_of_turn

    def decode(self, ids: Sequence[int]) -> str:
        """Return the reply in `ids` (generated tokens): up to the first stop, without special tokens, trimmed."""
        kept = list(itertools.takewhile(lambda token: token not in self.stop_ids, ids))
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        if not self.has_template:
            text = text.split(PLAIN_STOP)[0]
        return text.strip()

    def ended(self, ids: Sequence[int]) -> bool:
        """Return whether the model ended the reply in `ids` itself, before the length limit."""
        if any(token in self.stop_ids for token in ids):
            return True
        return not self.has_template and PLAIN_STOP in str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
