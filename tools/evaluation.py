"""Measuring a candidate: replies, rewards, and what the failures lack."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nslora.tools.attribution import Attribution, attribute, potentials
from nslora.tools.errors import RunError
from nslora.tools.files import write_jsonl
from nslora.tools.policy import Advance, Policy, silent
from nslora.tools.prompt import Prompt
from nslora.tools.reply_cache import ReplyCache, reply_key
from nslora.tools.rewards import Graded, Reward
from nslora.tools.task import Example


@dataclass(frozen=True)
class Replies:
    """Replies to some questions: how many tokens were generated for them, and how many replies came from the cache."""

    texts: tuple[str, ...]
    tokens: int
    cached: int


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
    """A failing reply in full, with the classifier's answer."""

    id: str
    split: str
    question: str
    reply: str
    feedback: str
    attribution: Attribution


def ask(policy: Policy, cache: ReplyCache | None, prompt: Prompt, questions: Sequence[str], *, adapter: str | None,
        max_new_tokens: int, advance: Advance = silent) -> Replies:
    """The policy's greedy replies to `questions` under `prompt`, from the cache where they are known."""
    dialogues = [prompt.messages(question) for question in questions]
    keys = [reply_key(policy.fingerprint, adapter, json.dumps(dialogue), max_new_tokens) for dialogue in dialogues]
    known = cache.find(keys) if cache else {}
    missing = [i for i, key in enumerate(keys) if key not in known]
    generated = policy.generate([dialogues[i] for i in missing], adapter=adapter, max_new_tokens=max_new_tokens,
                                advance=advance)
    new = {keys[i]: reply for i, reply in zip(missing, generated.replies, strict=True)}
    if cache:
        cache.add(new)
    replies = {**known, **new}
    return Replies(tuple(replies[key] for key in keys), generated.tokens, len(keys) - len(missing))


def grade(reward: Reward, examples: Sequence[Example], replies: Sequence[str]) -> list[Graded]:
    """Each reply with its score. Raises RewardError, naming the row, where the reward breaks its promise."""
    return [Graded(example, reply, reward(example, reply))
            for example, reply in zip(examples, replies, strict=True)]


def measure(graded: Sequence[Graded], reward: Reward, known_good: Sequence[Graded], split: str,
            losses: Sequence[float | None] | None = None) -> tuple[list[Row], list[Failure]]:
    """Rows and failures of one split, the failures attributed to content and form by the reward itself."""
    failing = [each for each in graded if not each.score.passed]
    attributions = attribute(failing, reward, known_good=known_good)
    singles = potentials(graded, attributions)
    rows = [Row(each.example.id, split, each.score.value, dict(each.score.checks), single, loss)
            for each, single, loss in zip(graded, singles, losses or [None] * len(graded), strict=True)]
    failures = [Failure(each.example.id, split, each.example.question, each.reply, each.score.feedback, attribution)
                for each, attribution in zip(failing, attributions, strict=True)]
    return rows, failures


def write_evaluation(path: Path, rows: Sequence[Row], failures: Sequence[Failure]) -> None:
    """One line per row (numbers only), then one per failure (with its texts)."""
    write_jsonl(path, [{"row": asdict(row)} for row in rows] + [{"failure": asdict(each)} for each in failures])


def read_evaluation(path: Path) -> tuple[list[Row], list[Failure]]:
    """What `write_evaluation` wrote. Raises RunError where the file is missing or damaged."""
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8",
                                                                                  errors="surrogatepass").splitlines()]
        rows = [Row(**line["row"]) for line in lines if "row" in line]
        failures = [Failure(**{**line["failure"], "attribution": Attribution(**line["failure"]["attribution"])})
                    for line in lines if "failure" in line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"The evaluation {path} cannot be read ({error}): delete it and continue from the round "
                       "before.") from error
    return rows, failures
