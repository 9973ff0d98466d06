"""Dialogues as tokens: chat template, end of turn and padding, for any causal model."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from nslora.tools.errors import ModelError, first_line
from nslora.tools.inference.tool_turns import TOOL, TOOL_CALLS, for_template, in_words, tools_of, with_tools
from nslora.tools.policy import Thinking
from nslora.tools.schema import Dialogue
from nslora.tools.thinking import CLOSING, OPENING, THOUGHT_KEYS, split_thinking, thought_in

ASKED, MARK = [{"role": "user", "content": "a"}], "Zq7MARK7qZ"  # a dialogue that shows how a template writes
# How families open and close their thinking: Qwen, DeepSeek, GLM, Nemotron, LFM; Gemma 4; gpt-oss; Mistral; Seed.
NEXT_CHANNEL = "<|end|><|start|>assistant"
MARKERS = (
    ("<think>\n", "\n</think>\n\n"),
    ("<|channel>thought\n", "\n<channel|>"),
    ("<|channel|>analysis<|message|>", f"{NEXT_CHANNEL}<|channel|>final<|message|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
# The template for a model that has none; a reply ends with the end token, or before the next question.
PLAIN_TEMPLATE = (
    "{% set labels = {'user': 'Question: ', 'assistant': 'Answer: '} %}"
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ labels.get(message['role'], '') + message['content'] }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAnswer:' }}{% endif %}"
)
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
        thinking: Whether replies begin with thinking; "template" leaves it to the template.
    """

    tokenizer: Any
    generation_stops: tuple[int, ...] = ()
    vocabulary: int | None = None
    thinking: Thinking = "off"

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            self.tokenizer.chat_template = f"{{{{ {_beginning(self.tokenizer)!r} }}}}{PLAIN_TEMPLATE}"

    @property
    def is_plain(self) -> bool:
        """Whether the model has no chat template of its own, and writes `PLAIN_TEMPLATE`."""
        return str(self.tokenizer.chat_template).endswith(PLAIN_TEMPLATE)

    def refuse_unusable(self, name: str) -> None:
        """Check that the template writes prompts and replies, with thinking as the setting wants it.

        Args:
            name: The model's name.

        Raises:
            ModelError: If it does not.
        """
        if self.thinking == "on" and not self.thinks:
            raise ModelError(
                f"thinking is on, but the chat template of {name} writes no thinking that nslora knows: leave the "
                "setting out, or choose a model that thinks."
            )
        self.pair_ids(ASKED, MARK)

    @cached_property
    def revision(self) -> str:
        """Names what makes prompts differ from those of earlier versions, with thinking off; "" if nothing does.

        It is a part of the policy's fingerprint, so that replies to other prompts are never taken from a record.
        """
        surplus, header = self.opening
        if self.thinks and self.thinking != "off":
            return f"+thinking-{self.thinking}"
        if surplus or (header and self._written(ASKED) == self._written(ASKED, add_generation_prompt=True)):
            return "+as-answered"
        return "+plain" if self.is_plain and self.prompt_ids(ASKED) != self._ids_before(ASKED) else ""

    def _ids_before(self, dialogue: Dialogue) -> list[int]:
        """Prompt ids of earlier versions without a template: the tokenizer added its special tokens itself."""
        text = self.render(dialogue).removeprefix(_beginning(self.tokenizer))
        ids = [int(i) for i in self.tokenizer(text)["input_ids"]]
        return ids[:-1] if ids[-1] == self.tokenizer.eos_token_id else ids

    @property
    def thinks(self) -> bool:
        """Whether the template knows how to write thinking."""
        return self._markers is not None

    def render(self, dialogue: Dialogue) -> str:
        """Write the text that the policy continues: all turns, then the opening of the assistant's turn.

        Raises:
            ModelError: If the chat template cannot write the dialogue.
        """
        surplus, header = self.opening
        text = self._written(self._told(dialogue), add_generation_prompt=True)
        return text.removesuffix(surplus) + header

    def _told(self, dialogue: Dialogue) -> list[dict[str, str]]:
        """The dialogue as the template can write it.

        Tools that it does not know are said in words. Without system turns, the first user turn says their text.
        """
        tools, turns = tools_of(dialogue)
        uses_tools = tools or any(turn["role"] == TOOL or TOOL_CALLS in turn for turn in turns)
        if uses_tools and not self.knows_tools:
            tools, turns = [], in_words(tools, turns)
        if turns and turns[0]["role"] == "system" and not self.knows_system_turns:
            system, first, *rest = turns
            turns = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        return with_tools(turns, tools)

    def _written(self, dialogue: Dialogue, *, add_generation_prompt: bool = False) -> str:
        """Apply the chat template, with thinking as the setting has it."""
        from jinja2 import TemplateError

        template = self.tokenizer.chat_template
        dated = DATED + template if isinstance(template, str) and "strftime_now" in template else None
        switch = {} if self.thinking == "template" else {"enable_thinking": self.thinking == "on"}
        tools, turns = tools_of(dialogue)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    for_template(turns),
                    tools=tools or None,
                    chat_template=dated,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **switch,
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ModelError(
                f"The tokenizer's chat template cannot write a dialogue of {roles} ({first_line(error)}): give the "
                "tokenizer another chat_template."
            ) from error

    @cached_property
    def knows_system_turns(self) -> bool:
        """Whether the template writes a system turn; some raise an error (Gemma's), some leave it out silently."""
        try:
            return MARK in self._written([{"role": "system", "content": MARK}, *ASKED])
        except ModelError:
            return False

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template writes the schemas of tools, and the results of calls."""
        tool = {"type": "function", "function": {"name": MARK, "description": MARK, "parameters": {"type": "object"}}}
        results = [{"role": "assistant", "content": "a"}, {"role": TOOL, "name": "a", "content": MARK}]
        try:
            asked = self._written(with_tools(ASKED, [tool]))
            return MARK in asked and MARK in self._written([*ASKED, *results])
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
    def _markers(self) -> tuple[str, str] | None:
        """The texts with which the model's family opens and closes its thinking; None if the template has none."""
        template = str(self.tokenizer.chat_template)
        return next((pair for pair in MARKERS if pair[1].strip().removeprefix(NEXT_CHANNEL) in template), None)

    @cached_property
    def opening(self) -> tuple[str, str]:
        """What the template's generation prompt has too much before a reply, and what it lacks.

        With thinking off, the prompt is the text that the template itself writes before a reply: it closes an empty
        block of thinking (Qwen3), opens none (DeepSeek-R1), or names the channel of the answer (gpt-oss). Spaces before
        a reply belong to the reply, whose first token holds them.
        """
        prompt, before = self._written(ASKED, add_generation_prompt=True), self._around_reply[0]
        if self.thinks and self.thinking != "off":
            return "", ""
        if prompt.startswith(before):
            return prompt.removeprefix(before), ""
        header = before.removeprefix(prompt)
        return "", header.rstrip(" ") if before.startswith(prompt) and header.strip() else ""

    @cached_property
    def _opens_thinking(self) -> bool:
        """Whether the prompt opens the thinking, which the reply then only closes."""
        return self._markers is not None and self.render(ASKED).rstrip().endswith(self._markers[0].strip())

    def prompt_ids(self, dialogue: Dialogue) -> list[int]:
        """Return the token ids of `render(dialogue)`.

        Raises:
            ModelError: If there are none, or the chat template cannot write the dialogue.
        """
        ids = self._ids(self.render(dialogue))
        if not ids:
            raise ModelError("The prompt has no tokens: give the question some text.")
        return ids

    def pair_ids(self, dialogue: Dialogue, reply: str) -> tuple[list[int], list[int]]:
        """Return the token ids of the dialogue, and those of the reply after it with the end of its turn.

        Together they are the template's own rendering of the answered dialogue, up to the end of the turn. Both are cut
        from one text: SentencePiece tokenizers put a space before each text, and a reply inside a dialogue has none. If
        a token spans the border, the completion begins with it.
        """
        text = self.render(dialogue)
        prompt, whole = self.prompt_ids(dialogue), self._ids(text + self._continued(dialogue, text, reply))
        shared = len(os.path.commonprefix([prompt, whole]))  # noqa: RUF071 (it compares items of any sequence)
        return whole[:shared], [*whole[shared:], self.end_of_turn]

    def _continued(self, dialogue: Dialogue, prompt: str, reply: str) -> str:
        """The reply as the template writes it after the prompt, with its thinking unless the prompt rules it out."""
        thinking, answer = split_thinking(reply) if self.thinks else ("", reply)
        opening, closing = self._markers or ("", "")
        shut = self.thinking == "off" or (closing and prompt.rstrip().endswith(closing.strip()))
        thought = "" if shut else thought_in(thinking)
        said = {"role": "assistant", "content": answer} | (dict.fromkeys(THOUGHT_KEYS, thought) if thought else {})
        written, after = self._written([*self._told(dialogue), said]), self._around_reply[1]
        if written.startswith(prompt) and written.endswith(after) and thought in written:
            return written.removeprefix(prompt).removesuffix(after)
        if not thought and not self._opens_thinking:
            return answer
        # DeepSeek-R1's template drops the thinking of every reply, though its prompt begins one.
        return f"{'' if self._opens_thinking else opening}{thought}{closing}{answer}"

    def count(self, dialogue: Dialogue) -> int:
        """Count the tokens of the prompt, and of the reply if the last turn is one."""
        if not dialogue or dialogue[-1]["role"] != "assistant":
            return len(self.prompt_ids(dialogue))
        prompt, completion = self.pair_ids(dialogue[:-1], dialogue[-1]["content"])
        return len(prompt) + len(completion)

    def _ids(self, text: str) -> list[int]:
        """Token ids of a text; the chat template writes its own special tokens."""
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends the assistant's turn: the first special token after a reply, else the end of text."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        for token in self._ids(self._around_reply[1]):
            if token in special:
                return token
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

    def save_plain(self, folder: Path) -> None:
        """Save the tokenizer with `PLAIN_TEMPLATE` for other programs; nothing if the model has its own template."""
        if self.is_plain:
            self.tokenizer.save_pretrained(folder)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the reply in `ids` (generated tokens): up to the first stop, without special tokens, trimmed.

        Thinking stands between `<think>` and `</think>`, whatever the family's markers are.
        """
        kept = list(itertools.takewhile(lambda token: token not in self.stop_ids, ids))
        if self._markers is not None:
            return self._with_thinking(kept)
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        if self.is_plain:
            text = text.split(PLAIN_STOP)[0]
        return text.strip()

    def _with_thinking(self, ids: Sequence[int]) -> str:
        """The reply with the markers of its family, which may be special tokens, as `<think>` and `</think>`."""
        opening, closing = (each.strip() for each in self._markers or ("", ""))
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
        for marker, plain in ((closing, CLOSING), (closing.removeprefix(NEXT_CHANNEL), CLOSING), (opening, OPENING)):
            text = text.replace(marker, plain)
        for special in self.tokenizer.all_special_tokens:
            if special not in (OPENING, CLOSING):
                text = text.replace(special, "")
        return f"{OPENING}\n{text.strip()}" if self._opens_thinking else text.strip()

    def ended(self, ids: Sequence[int]) -> bool:
        """Return whether the model ended the reply in `ids` itself, before the length limit."""
        if any(token in self.stop_ids for token in ids):
            return True
        return self.is_plain and PLAIN_STOP in str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def as_plain_text(dialogue: Dialogue) -> str:
    """The prompt of a model without a chat template, without the special tokens that its tokenizer adds to a text."""
    from jinja2 import Template

    return str(Template(PLAIN_TEMPLATE).render(messages=dialogue, add_generation_prompt=True))


def _beginning(tokenizer: Any) -> str:
    """The special tokens that a tokenizer puts before a text, such as `<bos>`; a template has to write them itself."""
    ids = list(tokenizer("a")["input_ids"])
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    text = list(itertools.takewhile(lambda i: i != bare[0], ids))
    return str(tokenizer.decode(text, skip_special_tokens=False))
