"""Remade data: what an edit is worth beyond its prompt.

Under a proposed prompt the policy answers the train questions with the reference given as a hint, in the question and
in the demonstrations alike; each reply that earns full reward is a training row for that prompt. (Measured with
SmolLM2-135M-Instruct: 92 % of 24 replies verified, 62 % where the demonstrations had no hint.)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nslora.tools.evaluation import ask, grade
from nslora.tools.files import read_jsonl, write_jsonl
from nslora.tools.policy import Advance, Policy, silent
from nslora.tools.prompt import Demonstration, Prompt, normalise
from nslora.tools.reply_cache import ReplyCache
from nslora.tools.rewards import Reward
from nslora.tools.task import Example

HINT = "{question}\n(The answer is: {reference})"


@dataclass(frozen=True)
class RemadeRow:
    """A verified reply to a train question. source: the example's id; adapter: who replied (None: the base)."""

    source: str
    question: str
    reply: str
    prompt: str
    adapter: str | None
    reward: float

    def as_trl(self, prompt: Prompt) -> dict[str, Any]:
        """TRL's conversational prompt-completion format, with the row's origin beside it."""
        return {"prompt": prompt.messages(self.question), "completion": [{"role": "assistant", "content": self.reply}],
                "source": self.source, "prompt_hash": self.prompt, "adapter": self.adapter or "", "reward": self.reward}


@dataclass(frozen=True)
class Remade:
    """The rows of one prompt, and what making them cost."""

    rows: tuple[RemadeRow, ...]
    generated_tokens: int


def hinted(prompt: Prompt, references: dict[str, str]) -> Prompt:
    """`prompt` whose demonstrations carry the hint too, where their question is one of the train questions."""
    demonstrations = tuple(
        Demonstration(with_hint(each.question, references[key]), each.reply)
        if (key := normalise(each.question)) in references else each for each in prompt.demonstrations)
    return Prompt(prompt.system, prompt.template, demonstrations)


def with_hint(question: str, reference: str) -> str:
    return HINT.replace("{reference}", reference).replace("{question}", question)


def remake(policy: Policy, cache: ReplyCache | None, reward: Reward, prompt: Prompt, examples: Sequence[Example], *,
           adapter: str | None, max_new_tokens: int, advance: Advance = silent) -> Remade:
    """Verified replies to the train `examples` under `prompt`: one at most per example, the base's first.

    The adapter in force answers what the base could not; examples without a reference have no hint and are left out.
    """
    open_examples = [example for example in examples if example.reference]
    references = {normalise(example.question): example.reference or "" for example in open_examples}
    hinted_prompt = hinted(prompt, references)
    rows: list[RemadeRow] = []
    tokens = 0
    for who in dict.fromkeys((None, adapter)):
        questions = [with_hint(example.question, example.reference or "") for example in open_examples]
        replies = ask(policy, cache, hinted_prompt, questions, adapter=who, max_new_tokens=max_new_tokens,
                      advance=advance)
        tokens += replies.tokens
        good = {each.example.id: each for each in grade(reward, open_examples, replies.texts) if each.score.passed}
        rows += [RemadeRow(each.example.id, each.example.question, each.reply, prompt.hash, who, each.score.value)
                 for each in good.values()]
        open_examples = [example for example in open_examples if example.id not in good]
    order = {example.id: i for i, example in enumerate(examples)}
    return Remade(tuple(sorted(rows, key=lambda row: order[row.source])), tokens)


def write_rows(path: Path, rows: Sequence[RemadeRow]) -> None:
    write_jsonl(path, [asdict(row) for row in rows])


def read_rows(path: Path) -> list[RemadeRow]:
    return [RemadeRow(**row) for row in read_jsonl(path)]
