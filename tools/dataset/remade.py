"""Remade data: verified replies to the train questions under a new prompt, as training rows.

The method is STaR's rationalisation (Zelikman et al. 2022, STaR: Bootstrapping Reasoning With Reasoning) with rejection
sampling by the reward. The policy gets the reference as a hint and answers in its own words; a reply becomes a training
row, without the hint, only if it earns full reward. Three things differ from STaR:

- Every train question gets a hint, not only the questions that the policy fails, because the rows teach the form that
  the new prompt asks for.
- The demonstrations of the prompt carry hints too. Measured with SmolLM2-135M-Instruct on 24 replies: 92 % were
  verified, 62 % without hints in the demonstrations.
- If no reply to a question was verified, `remake` puts the reference into a layout learnt from verified replies and
  from demonstrations, and keeps it if it earns full reward. The base follows some styles badly: with a style in
  capitals 18 of 60 replies were verified, and plain references for the other rows teach the wrong form.

A reply that the length limit truncated is never a row: the weights would learn to stop in mid-sentence.

A prompt that no edit proposed has no remade data, though plain references could still unteach its form. `known_rows`
serves it with replies that are known already: the kept candidate's passing replies, and failing replies whose content
the classifier repaired to full reward.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nslora.tools.classifier.layouts import learn_layouts
from nslora.tools.evaluation.rollouts import ask, grade
from nslora.tools.files import read_jsonl, unless_changed, without_blank, write_jsonl
from nslora.tools.inference.chat_template import as_plain_text
from nslora.tools.inference.reply_cache import ReplyCache, token_counts
from nslora.tools.inference.tool_turns import for_template, in_words, tools_of
from nslora.tools.policy import OnProgress, Policy, no_progress
from nslora.tools.prompt import Demonstration, Prompt, normalise
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example, Message, Turns
from nslora.tools.thinking import split_thinking

LAYOUT = "layout"  # stands for the adapter of a row that no model wrote


@dataclass(frozen=True)
class RemadeRow:
    """A verified reply to a train question.

    Attributes:
        source: Id of the train example.
        question: The question without the hint.
        history: The turns before it.
        reply: The reply that earned full reward.
        prompt: Hash of the prompt that the row teaches.
        adapter: Hash of the adapter that replied; None for the base, `LAYOUT` for a reference put into a layout.
        reward: Reward of the reply.
        edit: Name of the edit that proposed the prompt, as in the run's folder `edits`; "" for known rows.
        thinking: What the reply begins with.
        dialogue: What one call of an agent was sent; empty if the reply follows the question.
    """

    source: str
    question: str
    reply: str
    prompt: str
    adapter: str | None
    reward: float
    edit: str = ""
    thinking: str = ""
    history: Turns = ()
    dialogue: tuple[Message, ...] = ()

    def sent(self, prompt: Prompt) -> list[Message]:
        """What is sent before the reply, under the prompt that the row teaches."""
        return list(self.dialogue) or prompt.messages(self.question, self.history)

    def as_trl(self, prompt: Prompt, *, as_text: bool = False) -> dict[str, Any]:
        """The row in TRL's prompt-completion format, with its origin in further columns.

        Args:
            prompt: The prompt that the row teaches.
            as_text: Write text, as the policy reads it, for a model that has no chat template; else chat turns.
        """
        (tools, dialogue), reply = tools_of(self.sent(prompt)), self.thinking + self.reply
        told = in_words(tools, dialogue) if self.dialogue else dialogue
        return {
            "prompt": as_plain_text(told) if as_text else for_template(dialogue),
            **({"tools": tools} if tools and not as_text else {}),
            "completion": f" {reply}" if as_text else [{"role": "assistant", "content": reply}],
            "source": self.source,
            "prompt_hash": self.prompt,
            "edit": self.edit,
            "adapter": self.adapter or "",
            "reward": self.reward,
        }


@dataclass(frozen=True)
class Remade:
    """The remade data of one prompt, and its cost.

    Attributes:
        rows: Verified rows, in the order of the train examples.
        generated_tokens: Tokens generated now; replies from the cache cost none.
        forward_tokens: Tokens of their prompts and replies, whether generated or from the cache.
    """

    rows: tuple[RemadeRow, ...]
    generated_tokens: int
    forward_tokens: int = 0


def with_hint(example: Example) -> Example:
    """The row with its reference as a hint in its question."""
    return replace(example, question=_hint(example.question, example.reference))


def _hint(question: str, reference: str | None) -> str:
    return f"{question}\n(The answer is: {reference or ''})"


def hinted(prompt: Prompt, examples: Iterable[Example]) -> Prompt:
    """The prompt with a hint in each demonstration whose question is the question of one of the examples."""
    references = {normalise(example.asked): example.reference for example in examples}
    demonstrations = tuple(
        Demonstration(_hint(each.question, references[key]), each.reply)
        if (key := normalise(each.question)) in references
        else each
        for each in prompt.demonstrations
    )
    return replace(prompt, demonstrations=demonstrations)


def remake(
    policy: Policy,
    cache: ReplyCache | None,
    reward: Reward,
    prompt: Prompt,
    examples: Sequence[Example],
    *,
    adapter: str | None,
    max_new_tokens: int,
    per_row: int = 1,
    edit: str = "",
    unasked: Sequence[Example] = (),
    on_progress: OnProgress = no_progress,
) -> Remade:
    """Make verified replies to train examples under a prompt.

    The base answers first; the adapter then answers the examples that have fewer than `per_row` rows. Examples without
    a reference are left out. An example whose hinted dialogue outgrows the model's context is not asked. The same pair
    of question and reply becomes one row, even if several examples share it.

    Args:
        policy: The model that replies.
        cache: Known replies, or None.
        reward: The reward that verifies the replies.
        prompt: The prompt that the rows teach.
        examples: Train examples to ask about.
        adapter: Hash of the adapter in force; None if the base is in force.
        max_new_tokens: Longest reply.
        per_row: Most rows per example.
        edit: Name of the edit that proposed the prompt.
        unasked: Train examples that the budget leaves no replies for; their references are put into layouts.
        on_progress: Called with replies done and wanted.
    """
    every = [example for example in (*examples, *unasked) if example.reference]
    hinted_prompt = hinted(prompt, every)
    hints = {example.id: hinted_prompt.dialogue(with_hint(example)) for example in every}
    with_reference = [example for example in examples if example.reference]
    lengths = token_counts(policy, cache, [hints[example.id] for example in with_reference])
    fitting = [
        example
        for example, length in zip(with_reference, lengths, strict=True)
        if length + max_new_tokens <= policy.context_tokens
    ]
    rows: dict[tuple[str, str], RemadeRow] = {}
    generated = forward = 0
    for who in dict.fromkeys((None, adapter)):
        made = Counter(row.source for row in rows.values())
        wanted = [example for example in fitting if made[example.id] < per_row]
        replies = ask(
            policy,
            cache,
            [hints[example.id] for example in wanted],
            adapter=who,
            max_new_tokens=max_new_tokens,
            on_progress=on_progress,
        )
        generated, forward = generated + replies.tokens, forward + replies.forward_tokens
        for place, each in enumerate(grade(reward, wanted, replies.texts)):
            if each.score.passed and place not in replies.truncated:
                row = _row(each.example, each.reply, prompt, who, each.score.value, edit, each.thinking)
                rows.setdefault((each.example.asked, each.reply), row)
    order = {example.id: i for i, example in enumerate(every)}
    found = [*rows.values(), *_laid_out(reward, prompt, every, list(rows.values()), edit)]
    return Remade(tuple(sorted(found, key=lambda row: order[row.source])), generated, forward)


def known_rows(
    reward: Reward,
    prompt: Prompt,
    examples: Sequence[Example],
    *,
    own: Mapping[str, str],
    mended: Mapping[str, str],
    adapter: str | None,
) -> list[RemadeRow]:
    """Verified rows for train examples whose plain reference does not earn full reward, without asking a model.

    The references of examples without a known reply are put into the layouts of the known ones.

    Args:
        reward: The reward that verifies each row.
        prompt: The kept prompt.
        examples: Train examples.
        own: The kept candidate's passing reply, by id of the example.
        mended: Its failing reply with the reference in place of the answer, by id, if it lacked only content.
        adapter: Hash of the kept adapter, which wrote `own`; None for the base.
    """
    with_reference = [example for example in examples if example.reference]
    scores = reward.score_all(with_reference, [example.reference or "" for example in with_reference])
    untaught = [example for example, score in zip(with_reference, scores, strict=True) if not score.passed]
    rows: list[RemadeRow] = []
    for example in untaught:
        replies = ((own.get(example.id), adapter), (mended.get(example.id), LAYOUT))
        rows += _first_verified(reward, prompt, example, replies)
    return rows + _laid_out(reward, prompt, untaught, rows)


def _laid_out(
    reward: Reward, prompt: Prompt, examples: Sequence[Example], rows: Sequence[RemadeRow], edit: str = ""
) -> list[RemadeRow]:
    """References that earn full reward in a learnt layout, for the examples that have no row."""
    by_id = {example.id: example for example in examples}
    by_question = {normalise(example.asked): example for example in examples}
    pairs = [(by_id[row.source], row.reply) for row in rows]
    pairs += [
        (by_question[key], each.reply)
        for each in prompt.demonstrations
        if (key := normalise(each.question)) in by_question
    ]
    good = [Graded(example, reply, reward(example, reply)) for example, reply in pairs]
    layouts = learn_layouts([each for each in good if each.score.passed])
    made = {row.source for row in rows}
    found: list[RemadeRow] = []
    for example in (each for each in examples if each.id not in made):
        replies = ((layout.wrap(example.reference or "", example.question), LAYOUT) for layout in layouts)
        found += _first_verified(reward, prompt, example, replies, edit)
    return found


def _first_verified(
    reward: Reward, prompt: Prompt, example: Example, replies: Iterable[tuple[str | None, str | None]], edit: str = ""
) -> list[RemadeRow]:
    """The first of the (reply, adapter) pairs that earns full reward, as a row; no row if none does."""
    for reply, who in replies:
        if reply is not None and (score := reward(example, reply)).passed:
            thinking, answer = split_thinking(reply)
            return [_row(example, answer, prompt, who, score.value, edit, thinking)]
    return []


def _row(
    example: Example, reply: str, prompt: Prompt, who: str | None, value: float, edit: str, thinking: str
) -> RemadeRow:
    question, history = example.question, example.history
    return RemadeRow(example.id, question, reply, prompt.hash, who, value, edit, thinking, history)


def rows_by_source(rows: Sequence[RemadeRow]) -> dict[str, list[RemadeRow]]:
    """The rows of each train example, in their order."""
    found: dict[str, list[RemadeRow]] = {}
    for row in rows:
        found.setdefault(row.source, []).append(row)
    return found


def write_rows(path: Path, rows: Sequence[RemadeRow]) -> None:
    """Write the rows as JSONL, atomically."""
    write_jsonl(path, [without_blank(asdict(row), "thinking", "history", "dialogue") for row in rows])


@unless_changed
def read_rows(path: Path) -> list[RemadeRow]:
    """The rows that `write_rows` wrote; none if there is no file. Raises DamagedError if a line is damaged."""
    return [
        RemadeRow(
            **{**row, "history": tuple(map(tuple, row.get("history", ()))), "dialogue": tuple(row.get("dialogue", ()))}
        )
        for row in read_jsonl(path, written_whole=True)
    ]
