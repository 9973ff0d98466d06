"""Replies of the policy to questions, graded by the reward, and losses of references."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from nslora.tools.files import sha256_of_json
from nslora.tools.inference.flops import answered, token_counts
from nslora.tools.inference.reply_cache import ReplyCache, reply_key
from nslora.tools.policy import OnProgress, Policy, no_progress
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example

STORED_REPLIES = 256  # replies are stored in lots of so many: what a kill or Ctrl-C loses of a long evaluation


@dataclass(frozen=True)
class Replies:
    """Replies to some questions: how many tokens were generated for them, and how many replies came from the cache.

    forward_tokens: prompts and replies together, cached or not. truncated: indices of replies that the length limit
    ended.
    """

    texts: tuple[str, ...]
    tokens: int
    cached: int
    forward_tokens: int = 0
    truncated: frozenset[int] = frozenset()


def ask(
    policy: Policy,
    cache: ReplyCache | None,
    prompt: Prompt,
    questions: Sequence[str],
    *,
    adapter: str | None,
    max_new_tokens: int,
    on_progress: OnProgress = no_progress,
) -> Replies:
    """The policy's greedy replies to `questions` under `prompt`, from the cache if it knows them."""
    dialogues = [prompt.messages(question) for question in questions]
    keys = [reply_key(policy.fingerprint, adapter, json.dumps(dialogue), max_new_tokens) for dialogue in dialogues]
    marks = {
        key: reply_key(policy.fingerprint, adapter, json.dumps(["cut", dialogue]), max_new_tokens)
        for key, dialogue in zip(keys, dialogues, strict=True)
    }
    by_key = dict(zip(keys, dialogues, strict=True))  # a question that comes twice is asked once
    replies = cache.find(list(by_key)) if cache else {}
    missing = [key for key in by_key if key not in replies]
    marked = set(cache.find(list(marks.values()))) if cache else set()
    request = sha256_of_json(keys)
    tokens, spent_replies = cache.paid(request) if cache else (0, 0)
    for start in range(0, len(missing), STORED_REPLIES):
        lot = missing[start : start + STORED_REPLIES]
        generated = policy.generate(
            [by_key[key] for key in lot],
            adapter=adapter,
            max_new_tokens=max_new_tokens,
            on_progress=_within(on_progress, start, len(lot), len(missing)),
        )
        new = dict(zip(lot, generated.replies, strict=True))
        tokens += generated.tokens
        truncated = {marks[lot[i]]: "" for i in sorted(generated.truncated)}
        marked |= truncated.keys()
        if cache:
            cache.add(truncated)  # before the replies, or a kill between the two would lose the marks
            cache.add(new, request, generated.tokens)
            new |= cache.find(lot)  # where another process was faster, its replies are the ones on record
        replies |= new
        on_progress(start + len(lot), len(missing))
    texts = tuple(replies[key] for key in keys)
    counts = token_counts(
        policy, cache, [answered(dialogue, text) for dialogue, text in zip(dialogues, texts, strict=True)]
    )
    return Replies(
        texts,
        tokens,
        len(by_key) - len(missing) - spent_replies,
        sum(counts),
        frozenset(i for i, key in enumerate(keys) if marks[key] in marked),
    )


def _within(on_progress: OnProgress, start: int, lot: int, total: int) -> OnProgress:
    """Progress inside a lot of replies. Its end is left to whoever stores them, since a run may stop there."""

    def inside(done: int, _: int) -> None:
        if done < lot:
            on_progress(start + done, total)

    return inside


def reference_losses(
    policy: Policy, cache: ReplyCache | None, prompt: Prompt, rows: Sequence[Example], *, adapter: str | None
) -> tuple[list[float | None], int]:
    """The loss of each row's reference under a prompt, and the tokens that went through the model for it.

    In nats per token, from the cache if it knows all of them; None if a row has no reference.
    """
    scored = [row for row in rows if row.reference]
    dialogues, references = [prompt.messages(row.question) for row in scored], [row.reference or "" for row in scored]
    keys = [
        reply_key(policy.fingerprint, adapter, json.dumps(["loss", dialogue, reference]), 0)
        for dialogue, reference in zip(dialogues, references, strict=True)
    ]
    known = cache.find(keys) if cache else {}
    if all(key in known for key in keys):
        losses = [float(known[key]) for key in keys]
    else:  # all of them again, since a batch of other rows would be padded to another width
        losses = policy.reference_losses(dialogues, references, adapter=adapter)
        if cache:
            cache.add({key: repr(loss) for key, loss in zip(keys, losses, strict=True)})
    counts = token_counts(policy, cache, [answered(*each) for each in zip(dialogues, references, strict=True)])
    by_id = {row.id: loss for row, loss in zip(scored, losses, strict=True)}
    return [by_id.get(row.id) for row in rows], sum(counts)


def grade(reward: Reward, examples: Sequence[Example], replies: Sequence[str]) -> list[Graded]:
    """Each reply with its score. Raises RewardError, naming the row, if the reward returns no usable score."""
    return [Graded(*each) for each in zip(examples, replies, reward.score_all(examples, replies), strict=True)]
