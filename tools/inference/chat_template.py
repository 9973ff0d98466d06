"""Dialogues as tokens: chat template, end of turn and padding, for any causal model."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from nslora.tools.errors import ModelError, first_line
from nslora.tools.schema import Dialogue, Message

ASKED, MARK = [{"role": "user", "content": "a"}], "Zq7MARK7qZ"  # what a template is looked at with
# A model without a chat template gets this plain rendering; its turn ends where the next question would begin.
PLAIN_LABELS = {"system": "", "user": "Question: ", "assistant": "Answer: "}
PLAIN_STOP = "\nQuestion:"
# Templates that write today's date get this one, on which Llama's fall back, so that a prompt is the same tomorrow. The
# macro hides transformers' own function of that name, which takes no other in its place.
TEMPLATE_DATE = datetime(2024, 7, 26, tzinfo=UTC)
DATED = (
    "{%- macro strftime_now(pattern) -%}{{ pattern"
    + "".join(f" | replace('%{code}', '{TEMPLATE_DATE.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
    + " }}{%- endmacro -%}"
)


@dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer writes a dialogue.

    tokenizer: a transformers tokenizer, with or without a chat template.
    generation_stops: the end tokens that the model's generation config names.
    vocabulary: tokens that the model has embeddings of; None where that is not known.
    """

    tokenizer: Any
    generation_stops: tuple[int, ...] = ()
    vocabulary: int | None = None

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def render(self, dialogue: Dialogue) -> str:
        """The text that the policy continues: all turns, then the opening of the assistant's turn."""
        if self.has_template:
            known = list(dialogue) if self.knows_system_turns else without_system_turn(dialogue)
            return self._written(known, add_generation_prompt=True) + self.reply_header
        turns = [PLAIN_LABELS[turn["role"]] + turn["content"] for turn in dialogue]
        return "\n".join([*turns, PLAIN_LABELS["assistant"].rstrip()])

    def _written(self, dialogue: Dialogue, *, add_generation_prompt: bool = False) -> str:
        """The dialogue as the template writes it; one that can let the model think before it answers is told not to."""
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
                f"The tokenizer's chat template cannot write a dialogue of {roles}: {first_line(error)}: "
                "give the tokenizer another chat_template."
            ) from error

    @cached_property
    def knows_system_turns(self) -> bool:
        """Whether the template writes a system turn; some refuse it (Gemma's), some leave it out without a word."""
        dialogue = [{"role": "system", "content": MARK}, {"role": "user", "content": "a"}]
        try:
            return MARK in self._written(dialogue)
        except ModelError:
            return False

    @cached_property
    def answered(self) -> tuple[str, str]:
        """What the template writes before and after the reply of a dialogue of two turns. Raises ModelError."""
        text = self._written([*ASKED, {"role": "assistant", "content": MARK}])
        before, found, after = text.rpartition(MARK)
        if not found:
            raise ModelError(
                "The tokenizer's chat template does not write a reply as it came, and none can be trained "
                "on: give the tokenizer another chat_template."
            )
        return before, after

    @cached_property
    def reply_header(self) -> str:
        """What the template writes between the opening of the assistant's turn and the reply, spaces aside.

        Harmony (gpt-oss) names the channel there: the model is asked, and trained, to answer in the last one at once.
        """
        opening, before = self._written(ASKED, add_generation_prompt=True), self.answered[0]
        opens = opening != self._written(ASKED)  # some leave the opening to the model
        header = before.removeprefix(opening)
        return header if opens and before.startswith(opening) and header.strip() else ""

    def prompt_ids(self, dialogue: Dialogue) -> list[int]:
        """Token ids of `render(dialogue)`. The template writes its own special tokens, so none are added."""
        ids = self.tokenizer(self.render(dialogue), add_special_tokens=not self.has_template)["input_ids"]
        # A plain tokenizer that closes each text with an end token would make the model answer an ended text.
        while ids and not self.has_template and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        if not ids:
            raise ModelError("A prompt came out as no tokens at all: give the question some text.")
        return [int(i) for i in ids]

    def completion_ids(self, reply: str) -> list[int]:
        """Token ids of an assistant's reply with the end of its turn, as training wants them."""
        ids = self.tokenizer(self._begun(reply), add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids] + [self.end_of_turn]

    def pair_ids(self, dialogue: Dialogue, reply: str) -> tuple[list[int], list[int]]:
        """`prompt_ids` of the dialogue, and those of the reply behind it with the end of its turn.

        They are cut apart from one text where that is possible: some tokenizers (SentencePiece's way) put a space
        before whatever they are given, which the reply of a dialogue does not have.
        """
        prompt = self.prompt_ids(dialogue)
        text = self.render(dialogue) + self._begun(reply)
        whole = [int(i) for i in self.tokenizer(text, add_special_tokens=not self.has_template)["input_ids"]]
        while not self.has_template and len(whole) > len(prompt) and whole[-1] == self.tokenizer.eos_token_id:
            whole.pop()
        if whole[: len(prompt)] == prompt:
            return prompt, [*whole[len(prompt) :], self.end_of_turn]
        return prompt, self.completion_ids(reply)

    def count(self, dialogue: Dialogue) -> int:
        """Tokens that go through the model: those of the prompt, or, where the last turn is a reply, with the reply."""
        if not dialogue or dialogue[-1]["role"] != "assistant":
            return len(self.prompt_ids(dialogue))
        prompt, completion = self.pair_ids(dialogue[:-1], dialogue[-1]["content"])
        return len(prompt) + len(completion)

    def _begun(self, reply: str) -> str:
        """The reply as it follows the opening of the assistant's turn."""
        return reply if self.has_template else f" {reply}"

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends the assistant's turn: what the template writes after a reply, else the end of text."""
        if self.has_template:
            tail = self.tokenizer(self.answered[1], add_special_tokens=False)["input_ids"]
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
            for token in tail:
                if token in special:
                    return int(token)
        if self.tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no end token: set tokenizer.eos_token before adapting this model.")
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token at which generation stops."""
        end = self.tokenizer.eos_token_id
        return tuple(sorted({self.end_of_turn, *self.generation_stops, *(() if end is None else (int(end),))}))

    @property
    def pad_id(self) -> int:
        """What fills a batch. It may equal an end token, so padding is masked by length, never by this id.

        A pad token that was added to the tokenizer alone has no embedding.
        """
        pad = self.tokenizer.pad_token_id
        known = pad is not None and (self.vocabulary is None or pad < self.vocabulary)
        return int(pad) if known else self.end_of_turn

    def decode(self, ids: Sequence[int]) -> str:
        """The reply in `ids` (generated tokens): up to the first stop, special tokens left out, trimmed."""
        kept: list[int] = []
        for token in ids:
            if token in self.stop_ids:
                break
            kept.append(int(token))
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        if not self.has_template:
            text = text.split(PLAIN_STOP)[0]
        return text.strip()

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the model itself ended the reply in `ids`, and not the limit of its length."""
        if any(token in self.stop_ids for token in ids):
            return True
        return not self.has_template and PLAIN_STOP in str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def without_system_turn(dialogue: Dialogue) -> list[Message]:
    """The dialogue with its system turn at the head of the first user turn."""
    if not dialogue or dialogue[0]["role"] != "system":
        return list(dialogue)
    system, first, *rest = dialogue
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
