"""Measuring a candidate: replies, rewards, and what the failures lack."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nslora.tools.classifier.attribution import Attribution, potentials
from nslora.tools.classifier.classify import classify
from nslora.tools.errors import DamagedError
from nslora.tools.files import read_whole, sha256_of_json, write_jsonl
from nslora.tools.inference.chat_template import Dialogue
from nslora.tools.inference.flops import answered, token_counts
from nslora.tools.inference.reply_cache import ReplyCache, reply_key
from nslora.tools.policy import Advance, Policy, silent
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.reward import Graded, Reward
from nslora.tools.tasks.task import Example

STORED_REPLIES = 256        # replies are stored in lots of so many: what a kill or Ctrl-C loses of a long evaluation


@dataclass(frozen=True)
class Replies:
    """Replies to some questions: how many tokens were generated for them, and how many replies came from the cache.

    forward_tokens: prompts and replies together, cached or not. cut: places of the replies that the length limit ended.
    """

    texts: tuple[str, ...]
    tokens: int
    cached: int
    forward_tokens: int = 0
    cut: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Row:
    """One validation or train question under one candidate. single: reward after the best single repair."""

    id: str
    split: str
    value: float
    checks: dict[str, float]
    single: float
    loss_nats: float | None

    @property
    def passed(self) -> bool:
        return all(value >= 1 for value in self.checks.values())


@dataclass(frozen=True)
class Failure:
    """A failing reply in full, with the classifier's answer. cut: the length limit ended it."""

    id: str
    split: str
    question: str
    reply: str
    feedback: str
    attribution: Attribution
    cut: bool = False


def ask(policy: Policy, cache: ReplyCache | None, prompt: Prompt, questions: Sequence[str], *, adapter: str | None,
        max_new_tokens: int, advance: Advance = silent) -> Replies:
    """The policy's greedy replies to `questions` under `prompt`, from the cache where they are known."""
    dialogues = [prompt.messages(question) for question in questions]
    keys = [reply_key(policy.fingerprint, adapter, json.dumps(dialogue), max_new_tokens) for dialogue in dialogues]
    marks = {key: reply_key(policy.fingerprint, adapter, json.dumps(["cut", dialogue]), max_new_tokens)
             for key, dialogue in zip(keys, dialogues, strict=True)}
    by_key = dict(zip(keys, dialogues, strict=True))        # a question that comes twice is asked once
    replies = cache.find(list(by_key)) if cache else {}
    missing = [key for key in by_key if key not in replies]
    marked = set(cache.find(list(marks.values()))) if cache else set()
    request = sha256_of_json(keys)
    tokens, spent_replies = cache.paid(request) if cache else (0, 0)
    for start in range(0, len(missing), STORED_REPLIES):
        lot = missing[start:start + STORED_REPLIES]
        generated = policy.generate([by_key[key] for key in lot], adapter=adapter, max_new_tokens=max_new_tokens,
                                    advance=_within(advance, start, len(lot), len(missing)))
        new = dict(zip(lot, generated.replies, strict=True))
        tokens += generated.tokens
        cut = {marks[lot[i]]: "" for i in sorted(generated.cut)}
        marked |= cut.keys()
        if cache:
            cache.add(cut)      # before the replies, or a kill between the two would lose the marks
            cache.add(new, request, generated.tokens)
            new |= cache.find(lot)      # where another process was faster, its replies are the ones on record
        replies |= new
        advance(start + len(lot), len(missing))
    texts = tuple(replies[key] for key in keys)
    counts = token_counts(policy, cache, [answered(dialogue, text)
                                          for dialogue, text in zip(dialogues, texts, strict=True)])
    return Replies(texts, tokens, len(by_key) - len(missing) - spent_replies, sum(counts),
                   frozenset(i for i, key in enumerate(keys) if marks[key] in marked))


def _within(advance: Advance, start: int, lot: int, total: int) -> Advance:
    """Progress inside a lot of replies. Its end is left to whoever stores them, since a run may stop there."""
    def inside(done: int, _: int) -> None:
        if done < lot:
            advance(start + done, total)

    return inside


def known_losses(policy: Policy, cache: ReplyCache | None, dialogues: Sequence[Dialogue], references: Sequence[str], *,
                 adapter: str | None) -> list[float]:
    """The references' losses, nats per token, from the cache where all of them are known there."""
    keys = [reply_key(policy.fingerprint, adapter, json.dumps(["loss", dialogue, reference]), 0)
            for dialogue, reference in zip(dialogues, references, strict=True)]
    known = cache.find(keys) if cache else {}
    if all(key in known for key in keys):
        return [float(known[key]) for key in keys]
    # All or nothing: a batch of other rows would be padded to another width.
    losses = policy.reference_losses(dialogues, references, adapter=adapter)
    if cache:
        cache.add({key: repr(loss) for key, loss in zip(keys, losses, strict=True)})
    return losses


def grade(reward: Reward, examples: Sequence[Example], replies: Sequence[str]) -> list[Graded]:
    """Each reply with its score. Raises RewardError, naming the row, where the reward breaks its promise."""
    return [Graded(example, reply, reward(example, reply))
            for example, reply in zip(examples, replies, strict=True)]


def measure(graded: Sequence[Graded], reward: Reward, known_good: Sequence[Graded], split: str,
            losses: Sequence[float | None] | None = None,
            train: Sequence[Example] = ()) -> tuple[list[Row], list[Failure]]:
    """Rows and failures of one split, the failures attributed to content and form by the reward itself.

    train: rows that reward heads are fitted on, where the reward is costly or wavers.
    """
    failing = [each for each in graded if not each.score.passed]
    attributions = classify(failing, reward, known_good=known_good, train=train)
    singles = potentials(graded, attributions)
    rows = [Row(each.example.id, split, each.score.value, dict(each.score.checks), single, loss)
            for each, single, loss in zip(graded, singles, losses or [None] * len(graded), strict=True)]
    failures = [Failure(each.example.id, split, each.example.question, each.reply, each.score.feedback, attribution)
                for each, attribution in zip(failing, attributions, strict=True)]
    return rows, failures


def anchor_rows(graded: Sequence[Graded]) -> list[Row]:
    """Rows of the anchor set: rewards alone, since nothing is to be learnt from them."""
    return [Row(each.example.id, "anchor", each.score.value, dict(each.score.checks), each.score.value, None)
            for each in graded]


@dataclass(frozen=True)
class EvaluationCost:
    """Generated tokens, cached replies, and all tokens that the model was asked for, cached or not."""

    tokens: int = 0
    cached: int = 0
    forward_tokens: int = 0


@dataclass(frozen=True)
class Passing:
    """A reply to a train question that earned full reward and that the model itself ended.

    The classifier learns a layout from it, and weights may learn the reply.
    """

    id: str
    reply: str


def write_evaluation(path: Path, rows: Sequence[Row], failures: Sequence[Failure], *, passing: Sequence[Passing] = (),
                     layouts: str = "", payer: str = "", cost: EvaluationCost | None = None) -> None:
    """A header, one line per row (numbers only), then one per failure and per passing train reply (with their texts).

    layouts: `layouts_hash` of what the failures were attributed with. payer: the graph's task that measured, at that
    cost.
    """
    header = {"rows": len(rows), "failures": len(failures), "layouts": layouts, "payer": payer,
              **asdict(cost or EvaluationCost())}
    write_jsonl(path, [{"header": header}] + [{"row": asdict(row)} for row in rows]
                + [{"failure": asdict(each)} for each in failures] + [{"passing": asdict(each)} for each in passing])


def layouts_hash(known_good: Sequence[Graded]) -> str:
    """The name of a set of replies that earn full reward."""
    return sha256_of_json(sorted({(each.example.id, each.reply) for each in known_good}))[:8]


def layouts_of(path: Path) -> str:
    """What the failures of a stored evaluation were attributed with. Raises DamagedError."""
    return str(header_of(path).get("layouts", ""))


def read_passing(path: Path) -> list[Passing]:
    """The passing train replies of a stored evaluation. Raises DamagedError."""
    try:
        return [Passing(**line["passing"]) for line in read_whole(path) if "passing" in line]
    except (DamagedError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"The evaluation {path} is damaged ({error}).") from error


def header_of(path: Path) -> dict[str, Any]:
    """The first line of a stored evaluation. Raises DamagedError."""
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as file:
            header: dict[str, Any] = dict(json.loads(file.readline())["header"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"The evaluation {path} is damaged ({error}).") from error
    return header


def evaluation_cost(path: Path, payer: str) -> EvaluationCost:
    """The cost of a stored evaluation; its generation counts where `payer` itself wrote it and was then killed.

    Raises DamagedError.
    """
    header = header_of(path)
    own = bool(payer) and header.get("payer") == payer
    return EvaluationCost(header["tokens"] if own else 0, header["cached"] if own else 0,
                          int(header.get("forward_tokens", 0)))


def read_evaluation(path: Path) -> tuple[list[Row], list[Failure]]:
    """What `write_evaluation` wrote. Raises DamagedError where the file is missing or damaged."""
    try:
        lines: list[dict[str, Any]] = read_whole(path)
        rows = [Row(**line["row"]) for line in lines if "row" in line]
        failures = [Failure(**{**line["failure"], "attribution": Attribution(**line["failure"]["attribution"])})
                    for line in lines if "failure" in line]
        for header in (line["header"] for line in lines if "header" in line):
            if (header["rows"], header["failures"]) != (len(rows), len(failures)):
                raise ValueError(f"{len(rows)} rows and {len(failures)} failures, wanted {header['rows']} and "
                                 f"{header['failures']}")
    except (DamagedError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"The evaluation {path} is damaged ({error}).") from error
    return rows, failures
