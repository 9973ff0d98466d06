"""Remade data: what an edit is worth beyond its prompt.

Under a proposed prompt the policy answers the train questions with the reference given as a hint, in the question and
in the demonstrations alike; each reply that earns full reward is a training row for that prompt, unless the length
limit cut it: weights would learn to end in mid-sentence. (Measured with SmolLM2-135M-Instruct: 92 % of 24 replies
verified, 62 % where the demonstrations had no hint.)

Where no reply of the policy was verified, the example's reference is put into the layouts of those that were (and of
the demonstrations), and kept only if the reward pays for it in full. Without it a style that the base follows badly
leaves most rows to plain references, which teach the wrong form: in capitals the base had 18 of 60 replies verified.

A prompt that no edit proposed has no such rows, though it may bring a form that plain references would unteach. There
what is known already serves (`known_rows`): the kept candidate's own passing replies, and those that the classifier
mended in content alone and the reward paid in full.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nslora.tools.classifier.layouts import learn_layouts
from nslora.tools.evaluation.rollouts import ask, grade
from nslora.tools.files import read_jsonl, unless_changed, write_jsonl
from nslora.tools.inference.flops import token_counts
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policy import OnProgress, Policy, no_progress
from nslora.tools.prompt import Demonstration, Prompt, normalise
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example

LAYOUT = "layout"
HINT = "{question}\n(The answer is: {reference})"


@dataclass(frozen=True)
class RemadeRow:
    """A verified reply to a train question.

    source: the example's id. prompt: hash of the prompt that it is for. adapter: who replied (None: the base; `LAYOUT`:
    nobody, the reference was put into a layout). edit: the edit that proposed the prompt, as its record is named in the
    run's folder `edits`.
    """

    source: str
    question: str
    reply: str
    prompt: str
    adapter: str | None
    reward: float
    edit: str = ""

    def as_trl(self, prompt: Prompt) -> dict[str, Any]:
        """TRL's conversational prompt-completion format, with the row's origin beside it."""
        return {
            "prompt": prompt.messages(self.question),
            "completion": [{"role": "assistant", "content": self.reply}],
            "source": self.source,
            "prompt_hash": self.prompt,
            "edit": self.edit,
            "adapter": self.adapter or "",
            "reward": self.reward,
        }


@dataclass(frozen=True)
class Remade:
    """The rows of one prompt, and what making them cost. asked: replies that were looked at.

    forward_tokens: of their prompts and replies, cached or not.
    """

    rows: tuple[RemadeRow, ...]
    generated_tokens: int
    asked: int = 0
    forward_tokens: int = 0


def hinted(prompt: Prompt, references: dict[str, str]) -> Prompt:
    """`prompt` whose demonstrations carry the hint too, where their question is one of the train questions."""
    demonstrations = tuple(
        Demonstration(with_hint(each.question, references[key]), each.reply)
        if (key := normalise(each.question)) in references
        else each
        for each in prompt.demonstrations
    )
    return Prompt(prompt.system, prompt.template, demonstrations)


def with_hint(question: str, reference: str) -> str:
    before, _, after = HINT.partition("{question}")
    return before + question + after.replace("{reference}", reference)


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
    """Verified replies to the train `examples` under `prompt`, at most `per_row` different ones per example.

    The base is asked first, then the adapter in force, for those examples that still have room. Examples without a
    reference have no hint and are left out; one whose hint does not fit the model's context is not asked. A pair of
    question and reply is kept once, whichever examples share it. unasked: other train examples, for which no reply can
    be paid; their references are put into layouts.
    """
    examples = [example for example in examples if example.reference]
    every = [*examples, *(example for example in unasked if example.reference)]
    references = {normalise(example.question): example.reference or "" for example in every}
    hinted_prompt = hinted(prompt, references)
    lengths = token_counts(
        policy, cache, [hinted_prompt.messages(with_hint(each.question, each.reference or "")) for each in examples]
    )
    fitting = [
        example
        for example, length in zip(examples, lengths, strict=True)
        if length + max_new_tokens <= policy.context_tokens
    ]
    order = {example.id: i for i, example in enumerate(every)}
    rows: list[RemadeRow] = []
    known: set[tuple[str, str]] = set()
    tokens = asked = forward = 0
    for who in dict.fromkeys((None, adapter)):
        made = Counter(row.source for row in rows)
        wanted = [example for example in fitting if made[example.id] < per_row]
        replies = ask(
            policy,
            cache,
            hinted_prompt,
            [with_hint(example.question, example.reference or "") for example in wanted],
            adapter=who,
            max_new_tokens=max_new_tokens,
            on_progress=on_progress,
        )
        tokens, asked, forward = tokens + replies.tokens, asked + len(wanted), forward + replies.forward_tokens
        for place, each in enumerate(grade(reward, wanted, replies.texts)):
            pair = (each.example.question, each.reply)
            if each.score.passed and place not in replies.truncated and pair not in known:
                known.add(pair)
                rows.append(
                    RemadeRow(
                        each.example.id, each.example.question, each.reply, prompt.hash, who, each.score.value, edit
                    )
                )
    rows += laid_out(reward, prompt, every, rows, edit)
    return Remade(tuple(sorted(rows, key=lambda row: order[row.source])), tokens, asked, forward)


def laid_out(
    reward: Reward, prompt: Prompt, examples: Sequence[Example], rows: Sequence[RemadeRow], edit: str
) -> list[RemadeRow]:
    """References in learnt layouts, for the examples that no reply was verified for; each earns full reward."""
    by_id = {example.id: example for example in examples}
    by_question = {normalise(example.question): example for example in examples}
    pairs = [(by_id[row.source], row.reply) for row in rows]
    pairs += [
        (by_question[normalise(each.question)], each.reply)
        for each in prompt.demonstrations
        if normalise(each.question) in by_question
    ]
    good = [Graded(example, reply, reward(example, reply)) for example, reply in pairs]
    layouts = learn_layouts([each for each in good if each.score.passed])
    made = {row.source for row in rows}
    found = []
    for example in examples:
        for layout in layouts if example.id not in made else ():
            reply = layout.wrap(example.reference or "", example.question)
            score = reward(example, reply)
            if score.passed:
                found.append(RemadeRow(example.id, example.question, reply, prompt.hash, LAYOUT, score.value, edit))
                break
    return found


def known_rows(
    reward: Reward,
    prompt: Prompt,
    examples: Sequence[Example],
    *,
    own: Mapping[str, str],
    mended: Mapping[str, str],
    adapter: str | None,
) -> list[RemadeRow]:
    """Rows for the train `examples` whose plain reference does not earn full reward, from replies that do.

    own: the kept candidate's passing replies under `prompt`, by example; adapter: whose they are. mended: such of its
    failing replies as lacked content alone, with the reference in place of the answer. The rest is put into the layouts
    of these. No model is asked, and each row is verified; where nothing earns full reward there is none.
    """
    untaught = [example for example in examples if example.reference and not reward(example, example.reference).passed]
    rows = []
    for example in untaught:
        for reply, who in ((own.get(example.id), adapter), (mended.get(example.id), LAYOUT)):
            if reply is not None and (score := reward(example, reply)).passed:
                rows.append(RemadeRow(example.id, example.question, reply, prompt.hash, who, score.value))
                break
    return rows + laid_out(reward, prompt, untaught, rows, "")


def write_rows(path: Path, rows: Sequence[RemadeRow]) -> None:
    write_jsonl(path, [asdict(row) for row in rows])


def rows_by_source(rows: Sequence[RemadeRow]) -> dict[str, list[RemadeRow]]:
    """The rows of each train example, in their order."""
    found: dict[str, list[RemadeRow]] = {}
    for row in rows:
        found.setdefault(row.source, []).append(row)
    return found


@unless_changed
def read_rows(path: Path) -> list[RemadeRow]:
    return [RemadeRow(**row) for row in read_jsonl(path, written_whole=True)]
